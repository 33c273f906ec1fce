"""What outside code is written against. A change here is a change of a promise: say why in
`docs/decisions/`, and in the changelog."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

import ray_stream
from ray_stream import Cluster, Consumer, ConsumerGroup, Producer, errors, serializers
from ray_stream.cli.application import application
from ray_stream.config import (
    TOPIC_NOT_ENFORCED,
    ClusterConfig,
    ConsumerConfig,
    ConsumerOptions,
    ProducerConfig,
    ProducerOptions,
    TopicConfig,
    TopicOptions,
)
from ray_stream.errors import RayStreamError

NAMES = [
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

FUNCTIONS = {
    "start": "(*, name='default', address=None, data_dir=None, nodes=None, config=None)",
    "connect": "(*, name='default', address=None, data_dir=None)",
}

METHODS: dict[type, dict[str, str]] = {
    Cluster: {
        "address": "property",
        "alter_topic": "(name, partitions=None, *, timeout=30.0, **config)",
        "clock": "property",
        "close": "()",
        "cluster_id": "property",
        "consumer": "(*topics, **options)",
        "create_topic": (
            "(name, partitions=1, replication_factor=1, *, exist_ok=False, dedicated=False,"
            " timeout=30.0, **config)"
        ),
        "delete_group": "(name, *, timeout=30.0)",
        "delete_topic": "(name, *, timeout=30.0)",
        "describe_group": "(name, *, timeout=30.0)",
        "describe_groups": "(*, timeout=30.0)",
        "describe_topic": "(name, *, timeout=30.0)",
        "embedded": "property",
        "groups": "(*, timeout=30.0)",
        "metadata": "(timeout=30.0, *, topics=None)",
        "name": "property",
        "producer": "(**options)",
        "read": "(topic, start='earliest', end='latest', partitions=None, max_bytes=None)",
        "read_batches": "(topic, start='earliest', end='latest', partitions=None, max_bytes=None)",
        "reset_offsets": "(group, topic, to, *, timeout=30.0)",
        "run_consumers": (
            "(handler, *, topics, group, actors=1, batch_format='records', max_records=500,"
            " constructor_args=(), ray_actor_options=None, on_error='stop', **options)"
        ),
        "shutdown": "()",
        "topics": "(*, timeout=30.0)",
    },
    Producer: {
        "close": "()",
        "flush": "(timeout=None)",
        "metrics": "()",
        "partitions_for": "(topic)",
        "send": (
            "(topic, value, key=None, *, partition=None, timestamp_ms=None, headers=None,"
            " on_delivery=None)"
        ),
        "send_and_wait": (
            "(topic, value, key=None, *, partition=None, timestamp_ms=None, headers=None)"
        ),
        "send_batch": "(topic, data, *, key=None, partition=None, tombstones=False)",
    },
    Consumer: {
        "assign": "(partitions, start=None)",
        "assignment": "()",
        "batches": "()",
        "beginning_offsets": "(partitions=None, *, timeout=None)",
        "close": "()",
        "commit": "(offsets=None, *, timeout=None)",
        "committed": "(partitions, *, timeout=None)",
        "end_offsets": "(partitions=None, *, timeout=None)",
        "fetch": "(max_records=None, timeout=1.0)",
        "lag": "(*, timeout=None)",
        "offsets_for_times": "(times, *, timeout=None)",
        "pause": "(partitions=None)",
        "poll": "(max_records=None, timeout=1.0)",
        "position": "(partition, *, timeout=None)",
        "resume": "(partitions=None)",
        "seek": "(partition, start=None)",
        "seek_to_beginning": "(partitions=None)",
        "seek_to_end": "(partitions=None)",
        "subscribe": "(*topics)",
    },
}

METHODS[ConsumerGroup] = {
    "is_over": "property",
    "name": "property",
    "results": "()",
    "scale": "(actors)",
    "status": "(timeout=5.0)",
    "stop": "(timeout=30.0)",
    "wait": "(idle=1.0, timeout=None)",
}

MiB = 1024 * 1024

OPTIONS: dict[type[msgspec.Struct], dict[str, Any]] = {
    ProducerConfig: {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "batch_size": MiB,
        "buffer_memory": 64 * MiB,
        "max_block_ms": 60_000,
        "max_in_flight": 5,
        "delivery_timeout_ms": 120_000,
        "request_timeout_ms": 30_000,
        "retry_backoff_ms": 100,
        "retry_backoff_max_ms": 1_000,
        "compression_type": None,
        "key_serializer": None,
        "value_serializer": None,
        "partitioner": None,
        "transactional_id": None,
    },
    ConsumerConfig: {
        "group": None,
        "auto_offset_reset": "latest",
        "enable_auto_commit": True,
        "auto_commit_interval_ms": 5_000,
        "isolation_level": "read_committed",
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": 500,
        "fetch_max_bytes": 50 * MiB,
        "max_poll_records": 500,
        "max_poll_interval_ms": 300_000,
        "session_timeout_ms": 45_000,
        "request_timeout_ms": 30_000,
        "retry_backoff_ms": 100,
        "group_instance_id": None,
        "client_rack": None,
        "key_deserializer": None,
        "value_deserializer": None,
        "on_assigned": None,
        "on_revoked": None,
        "until": None,
    },
    TopicConfig: {
        "durability": "fsync",
        "segment_bytes": 1024 * MiB,
        "segment_ms": 7 * 24 * 3600 * 1000,
        "index_interval_bytes": 64 * 1024,
        "max_message_bytes": MiB,
        "max_batch_bytes": 64 * MiB,
        "message_timestamp_type": "CreateTime",
        "min_insync_replicas": 1,
    },
    ClusterConfig: {
        "partition_actors_max": None,
        "start_timeout_ms": 120_000,
        "lock_timeout_ms": 10_000,
        "checkpoint_interval_ms": 5_000,
        "heartbeat_interval_ms": 1_000,
        "actor_timeout_ms": 5_000,
    },
}

TYPED = {ProducerConfig: ProducerOptions, ConsumerConfig: ConsumerOptions}

RECORD = [
    "headers", "key", "leader_epoch", "offset", "partition", "timestamp", "timestamp_type",
    "topic", "value",
]  # fmt: skip

SERIALIZERS = ["arrow", "bytes", "cloudpickle", "json", "msgpack", "numpy", "string"]

ERRORS = {
    "BufferFullError": -1,
    "ClosedError": -1,
    "ClusterConfigMismatchError": -1,
    "ClusterNotFoundError": -1,
    "ConcurrentAccessError": -1,
    "ConfigNotEnforcedError": 40,
    "ConsumerActorError": -1,
    "CorruptRecordError": 2,
    "DataDirError": 57,
    "DataDirInUseError": 57,
    "DataDirSharedError": 57,
    "DataDirVersionError": 57,
    "DeliveryError": -1,
    "DeserializationError": -1,
    "FlushTimeoutError": -1,
    "ForkedProcessError": -1,
    "GroupIdNotFoundError": 69,
    "HandlerError": -1,
    "InvalidConfigError": 40,
    "InvalidPartitionsError": 37,
    "InvalidReplicationFactorError": 38,
    "InvalidTopicError": 17,
    "NonEmptyGroupError": 68,
    "NotEnoughReplicasError": 19,
    "NotLeaderOrFollowerError": 6,
    "OffsetOutOfRangeError": 1,
    "OutOfOrderSequenceError": 45,
    "OutcomeUnknownError": 7,
    "ProducerFencedError": 90,
    "RayNotRunningError": -1,
    "RebalanceInProgressError": 27,
    "RecordTooLargeError": 10,
    "SchemaError": 87,
    "SerializationError": -1,
    "StorageFullError": 56,
    "StorageOfflineError": 56,
    "TimeoutExpiredError": 7,
    "TopicAlreadyExistsError": 36,
    "UnknownOptionError": 40,
    "UnknownProducerIdError": 59,
    "UnknownTopicOrPartitionError": 3,
}

VERBS = {
    "start": ["--address", "--config", "--data-dir", "--debug", "--name", "--node-label"],
    "status": ["--address", "--data-dir", "--debug", "--json", "--name"],
    "stop": ["--address", "--data-dir", "--debug", "--name"],
    "topic": [],
    "produce": [
        "--address", "--config", "--data-dir", "--debug", "--key-separator", "--name",
        "--partition",
    ],
    "consume": [
        "--address", "--config", "--data-dir", "--debug", "--format", "--from", "--group",
        "--key-separator", "--max", "--name", "--partition", "--until",
    ],
    "group": [],
    "verify": ["--debug", "--json"],
    "repair": ["--debug", "--json"],
    "sim": ["--debug", "--seed", "--seeds", "--trace"],
    "demo": [],
    "bench": [
        "--address", "--data-dir", "--debug", "--durability", "--json", "--name", "--partitions",
        "--record-bytes", "--records",
    ],
}  # fmt: skip

TOPIC_VERBS = ["alter", "create", "delete", "describe", "list"]
GROUP_VERBS = ["delete", "describe", "list", "reset-offsets"]


def typed(function: Callable[..., Any]) -> str:
    """What a caller types: parameters and defaults, without annotations."""
    signature = inspect.signature(function)
    parameters = [
        one.replace(annotation=inspect.Parameter.empty)
        for name, one in signature.parameters.items()
        if name != "self"
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_the_package_exports_these_names_and_no_others() -> None:
    assert sorted(ray_stream.__all__) == NAMES
    assert all(getattr(ray_stream, name) is not None for name in NAMES)


def test_start_and_connect_take_these_arguments() -> None:
    assert {name: typed(getattr(ray_stream, name)) for name in FUNCTIONS} == FUNCTIONS


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_handles_have_these_methods(kind: type) -> None:
    found = {
        name: "property" if isinstance(member, property) else typed(member)
        for name, member in vars(kind).items()
        if not name.startswith("_")
    }
    assert found == METHODS[kind]


@pytest.mark.parametrize("takes_topics", [Cluster.consumer, Consumer.subscribe])
def test_a_type_checker_knows_that_topics_may_be_patterns(
    takes_topics: Callable[..., object],
) -> None:
    topics = inspect.signature(takes_topics).parameters["topics"].annotation
    assert re.Pattern[str] in typing.get_args(topics)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_handles_are_context_managers(kind: type) -> None:
    assert hasattr(kind, "__enter__")
    assert hasattr(kind, "__exit__")
    assert hasattr(Consumer, "__iter__")


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_options_have_these_names_and_defaults(kind: type[msgspec.Struct]) -> None:
    assert msgspec.structs.asdict(kind()) == OPTIONS[kind]


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_a_type_checker_knows_every_option(kind: type[msgspec.Struct]) -> None:
    assert set(TYPED[kind].__annotations__) == set(OPTIONS[kind])


def test_a_type_checker_knows_every_topic_setting() -> None:
    known = set(TopicOptions.__annotations__)
    assert set(OPTIONS[TopicConfig]) <= known
    assert known <= {*OPTIONS[TopicConfig], *TOPIC_NOT_ENFORCED}


def test_a_record_has_these_fields() -> None:
    assert sorted(vars(ray_stream.Record)["__slots__"]) == RECORD
    assert ray_stream.RecordMetadata._fields == (
        "topic", "partition", "offset", "timestamp", "durability",
    )  # fmt: skip
    assert ray_stream.TopicPartition._fields == ("topic", "partition")


def test_these_serializers_are_there() -> None:
    assert [name for name in SERIALIZERS if not hasattr(serializers, name)] == []


@pytest.mark.parametrize("name", ERRORS)
def test_errors_keep_their_names_and_kafkas_numbers(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, RayStreamError)
    assert kind.code == ERRORS[name]
    assert isinstance(kind.retriable, bool)


def test_the_command_line_has_these_verbs_and_options() -> None:
    context = click.Context(application)
    found = {}
    for name in application.list_commands(context):
        command = application.get_command(context, name)
        assert command is not None
        options = (one for one in command.params if isinstance(one, click.Option))
        found[name] = sorted(one.opts[0] for one in options)
    assert found == VERBS
    for name, verbs in (("topic", TOPIC_VERBS), ("group", GROUP_VERBS)):
        group = application.get_command(context, name)
        assert isinstance(group, click.Group)
        assert sorted(group.commands) == verbs
