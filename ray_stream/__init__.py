"""ray_stream: a durable, ordered, partitioned log that lives inside a Ray cluster.

Owns: the public names, and nothing else. `start` or `connect` gives a `Cluster`; everything else
hangs on it. Errors are in `ray_stream.errors`, serializers in `ray_stream.serializers`.

Names are loaded when they are first used, so that `ray_stream.testing` and the machines can be
imported where there is no Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_stream import errors, serializers
    from ray_stream.client.consumer import Consumer
    from ray_stream.client.producer import Producer
    from ray_stream.cluster.consumer_group import ConsumerGroup
    from ray_stream.cluster.handle import Cluster
    from ray_stream.cluster.starting import connect, start
    from ray_stream.errors import RayStreamError, RetriableError
    from ray_stream.types import (
        ConsumerActorStatus,
        ConsumerGroupStatus,
        GroupDescription,
        GroupMember,
        GroupPartition,
        PartitionDescription,
        Record,
        RecordMetadata,
        TimestampType,
        TopicDescription,
        TopicPartition,
    )

__all__ = [
    "Cluster",
    "Consumer",
    "ConsumerActorStatus",
    "ConsumerGroup",
    "ConsumerGroupStatus",
    "GroupDescription",
    "GroupMember",
    "GroupPartition",
    "PartitionDescription",
    "Producer",
    "RayStreamError",
    "Record",
    "RecordMetadata",
    "RetriableError",
    "TimestampType",
    "TopicDescription",
    "TopicPartition",
    "connect",
    "errors",
    "serializers",
    "start",
]

_HOMES = {
    "Cluster": "ray_stream.cluster.handle",
    "Consumer": "ray_stream.client.consumer",
    "ConsumerGroup": "ray_stream.cluster.consumer_group",
    "Producer": "ray_stream.client.producer",
    "RayStreamError": "ray_stream.errors",
    "RetriableError": "ray_stream.errors",
    "connect": "ray_stream.cluster.starting",
    "start": "ray_stream.cluster.starting",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("errors", "serializers"):
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_HOMES.get(name, "ray_stream.types")), name)


def __dir__() -> list[str]:
    return __all__
