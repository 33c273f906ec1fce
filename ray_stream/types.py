"""The nouns that every layer shares: addresses, records and descriptions.

Owns: plain immutable values. Refuses: behaviour, bytes, I/O.

Offsets are half-open everywhere: `start_offset` is inside, `end_offset` is not. Times are integer
milliseconds since the epoch unless a name says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

NO_OFFSET = -1
NO_EPOCH = -1
NO_PRODUCER_ID = -1
NO_SEQUENCE = -1
NO_TIMESTAMP = -1
SEQUENCE_MAX = 2**31 - 1

Headers = list[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """One partition of a topic, by the topic's name. What users hold."""

    topic: str
    partition: int


class TopicIdPartition(NamedTuple):
    """One partition of one incarnation of a topic: a topic made anew has a new id."""

    topic_id: str
    """The topic's uuid, 32 hexadecimal digits."""
    partition: int


class Durability(StrEnum):
    """What an acknowledgement stands for (STORAGE section 3)."""

    FSYNC = "fsync"
    REPLICATED = "replicated"


class TimestampType(IntEnum):
    """Who set a record's timestamp; the values are Kafka's."""

    CREATE_TIME = 0
    LOG_APPEND_TIME = 1


class Record(msgspec.Struct):
    """One record, as a consumer sees it.

    Of msgspec's kind because iteration makes millions of these: a slotted class with an `__init__`
    in Python took three times as long to make. Immutable headers let one empty tuple serve all
    records without any, and Python's garbage collector pass over every record of plain bytes.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: Any
    value: Any
    headers: tuple[tuple[str, bytes | None], ...]
    leader_epoch: int

    def __hash__(self) -> int:
        return hash((self.topic, self.partition, self.offset))


class RecordMetadata(NamedTuple):
    """Where an acknowledged record stands, and what the acknowledgement was worth."""

    topic: str
    partition: int
    offset: int
    """-1 with `acks=0`: nobody said where it went."""
    timestamp: int
    durability: str
    """`"fsync"`, `"replicated"`, or `"none"` for `acks=0`."""


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition, as the controller and its leader describe it."""

    partition: int
    leader: int
    """Broker id of the leader, -1 while there is none."""
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    beginning_offset: int
    """-1 while the leader cannot be reached."""
    end_offset: int
    """The high watermark; -1 while the leader cannot be reached."""
    offline_reason: str = ""
    """Why nothing serves this partition; empty when it is served."""


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """One topic with its whole configuration."""

    name: str
    topic_id: str
    replication_factor: int
    dedicated: bool
    config: Mapping[str, Any]
    partitions: tuple[PartitionDescription, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One consumer of a group."""

    member_id: str
    client_id: str
    """Which process or actor it is."""
    instance_id: str
    """`group_instance_id` of a static member; else empty."""
    node_id: str
    rack: str
    state: str
    """`stable`, `unrevoked` (has to release), `unreleased` (waits for others), `behind` (was not
    told yet), `away` (a static member that left for a while)."""
    epoch: int
    assignment: tuple[TopicPartition, ...]
    revoking: tuple[TopicPartition, ...] = ()
    """Partitions that it still has and is to release."""


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """One partition that a group reads, or has read."""

    topic: str
    partition: int
    committed: int | None
    """The offset from which its owner goes on; None: none is stored."""
    end_offset: int
    """-1 while the leader cannot be reached."""
    lag: int | None
    """Offsets between both; None while one of them is not known."""
    member_id: str
    """Who owns it; empty: nobody."""
    metadata: str = ""
    """What was committed along with the offset."""


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """One consumer group."""

    name: str
    state: str
    """`empty`, `reconciling` or `stable`."""
    epoch: int
    assignor: str
    members: tuple[GroupMember, ...] = ()
    partitions: tuple[GroupPartition, ...] = ()
    notes: tuple[str, ...] = ()
    """What somebody who wonders about the assignment should know."""

    @property
    def committed(self) -> dict[TopicPartition, int]:
        """Committed offsets, where there are any."""
        return {
            TopicPartition(one.topic, one.partition): one.committed
            for one in self.partitions
            if one.committed is not None
        }

    @property
    def lag(self) -> dict[TopicPartition, int]:
        """Lag of each partition, where it is known."""
        return {
            TopicPartition(one.topic, one.partition): one.lag
            for one in self.partitions
            if one.lag is not None
        }


@dataclass(frozen=True, slots=True)
class ConsumerActorStatus:
    """One actor of a `ConsumerGroup`."""

    name: str
    state: str
    """`starting`, `pending: needs …` (Ray cannot place it), `idle` (there are more members than
    partitions), `waiting` (for records), `handling`, `hangs: …` (its handler does not return),
    `silent: …`, `leaving`."""
    partitions: tuple[TopicPartition, ...]
    records: int
    """Handled and committed, as far as it told."""
    busy_s: float
    """For how long its handler has been running; 0: it is not."""
    pid: int
    """0 until it runs."""
    node_id: str
    last_error: str


@dataclass(frozen=True, slots=True)
class ConsumerGroupStatus:
    """A `ConsumerGroup`, as its owner sees it."""

    group: str
    state: str
    """`running`, `stopping`, `stopped` or `failed`."""
    wanted: int
    members: tuple[ConsumerActorStatus, ...]
    lag: Mapping[TopicPartition, int]
    """By partition; without those that nobody could tell in time."""
    records: int
    """Handled by all actors that there were."""
    rate: float
    """Records a second, over the last seconds."""
    restarts: int
    """Actors that were replaced."""
    errors: int
    skipped: int
    """Records whose batch failed, with `on_error="skip"`."""
    results_dropped: int
    last_error: str

    def __str__(self) -> str:
        total = f"{sum(self.lag.values()):,}" if self.lag else "unknown"
        head = (
            f"group {self.group!r} {self.state}: {len(self.members)} of {self.wanted} actors, lag "
            f"{total}, {self.records:,} records, {self.rate:,.0f}/s, {self.restarts} restarts"
        )
        lines = [head, *([f"last error: {self.last_error}"] if self.last_error else [])]
        for one in self.members:
            read = " ".join(f"{name.topic}-{name.partition}" for name in one.partitions)
            lines.append(f"  {one.name}: {one.state}, {one.records:,} records; {read or 'nothing'}")
        return "\n".join(lines)


StartPosition = (
    Literal["earliest", "latest"]
    | int
    | datetime
    | Mapping[int, "int | datetime | str"]
    | Mapping[TopicPartition, "int | datetime | str"]
)
"""Every "where to start" argument; a mapping gives one for each partition, by number or name."""
