"""What goes into a member's machine and what comes out of it.

Owns: the shapes. Refuses: everything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_stream.client.membership import Told
from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    OffsetCommit,
    OffsetFetch,
    PartitionKey,
    Subscription,
)
from ray_stream.metadata.commands import CreateTopic
from ray_stream.rpc.messages import ListOffsetsRequest, MetadataRequest


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the member is."""

    group: str
    member_id: str
    """Unique for each start of a consumer."""
    instance_id: str = ""
    """Kafka's `group_instance_id`; empty: none."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Join, or want something else."""

    number: int
    """Of the call that waits for the group's answer."""
    subscription: Subscription
    give_up_ms: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The consumer does as it was told."""

    version: int
    """Of `Told`."""
    owned: tuple[PartitionKey, ...]
    """All that it reads now."""


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """Store positions, behind all that were asked for before."""

    number: int | None
    """Of the call that waits; None: nobody does, and only what has changed is stored."""
    offsets: Mapping[PartitionKey, int]
    give_up_ms: int


@dataclass(frozen=True, slots=True)
class FetchAsked:
    """Read stored positions."""

    number: int
    partitions: tuple[PartitionKey, ...]
    give_up_ms: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave behind all commits that were asked for."""

    number: int
    """Of the call that waits."""
    give_up_ms: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, or an error in its place; late, repeated and unknown ones are harmless."""

    request_id: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    idle_since_ms: int | None = None
    """When the consumer was last seen reading; None: it is reading now."""


Event = Subscribe | Applied | CommitAsked | FetchAsked | Leave | Answered | Tick

Request = (
    ConsumerGroupHeartbeat
    | OffsetCommit
    | OffsetFetch
    | ListOffsetsRequest
    | MetadataRequest
    | CreateTopic
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request, and bring its answer back as `Answered`."""

    request_id: int
    host: str
    """The actor; empty for the controller."""
    request: Request


@dataclass(frozen=True, slots=True)
class Publish:
    """The group says something else than before."""

    told: Told


@dataclass(frozen=True, slots=True)
class Finished:
    """What a call waits for, or a commit that nobody waits for has failed."""

    number: int | None
    result: Any
    """An error of ours to raise, or what the call returns."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The result of a call whose time ran out."""

    last_error: RayStreamError | None


Effect = Send | Publish | Finished
