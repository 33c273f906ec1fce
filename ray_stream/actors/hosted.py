"""What is known of one partition that a host has open, and who waits on it.

Owns: plain values. Refuses: behaviour beyond settling one request (`actors.partition_host`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ray_stream.config import TopicConfig
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import Buffer, Lock
from ray_stream.metadata.commands import AssignedPartition, PartitionKey
from ray_stream.rpc.messages import (
    FetchRequest,
    FetchResponse,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.rpc.services import Reply
from ray_stream.types import Durability


@dataclass(slots=True)
class PendingProduce:
    """A produce request until each of its batches is answered."""

    reply: Reply[ProduceResponse]
    results: list[ProduceResult | None]
    missing: int
    acks: int

    def settle(self, position: int, result: ProduceResult) -> None:
        """One batch has its answer; the request is answered with the last one."""
        self.results[position] = result
        self.missing -= 1
        if self.missing == 0:
            self.reply(ProduceResponse([one for one in self.results if one is not None]))


class Waiting(NamedTuple):
    """One appended batch whose answer waits for the readable end."""

    end_offset: int
    pending: PendingProduce
    position: int
    result: ProduceResult
    wants_sync: bool
    """Whether the answer says so; what can be read may not be synced after a change."""


@dataclass(slots=True)
class ParkedFetch:
    """A fetch until there is enough to say, or its time is over."""

    request: FetchRequest
    reply: Reply[FetchResponse]
    deadline_ms: int


@dataclass(slots=True)
class Hosted:
    """One partition that this host has open; `leading` once its leader epoch began."""

    spec: AssignedPartition
    log: PartitionLog
    lock: Lock
    directory: str = ""
    """Where the log's files are."""
    leading: bool = False
    staged: list[tuple[Buffer, PendingProduce, int]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    parked: dict[int, ParkedFetch] = field(default_factory=dict)
    altered: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    """(offset to be synced first, what to call then) of changed settings."""
    checkpointed_end: int = -1
    looked_end: int = -1
    """The written end when somebody last looked whether the log is idle."""
    is_offline: bool = False
    """Noticed, and told."""
    key: PartitionKey = field(init=False)
    """Topic id and number; a change of settings leaves both."""

    def __post_init__(self) -> None:
        """Make what is asked for with each batch once."""
        self.key = (self.spec.topic_id, self.spec.partition)

    @property
    def name(self) -> str:
        """`topic-partition`, for messages."""
        return f"{self.spec.topic}-{self.spec.partition}"


def log_options(spec: AssignedPartition) -> LogOptions:
    """A log's options from what the controller assigned."""
    config: TopicConfig = spec.config
    return LogOptions(
        topic=spec.topic,
        topic_id=spec.topic_id,
        partition=spec.partition,
        durability=Durability(config.durability),
        segment_bytes=config.segment_bytes,
        segment_ms=config.segment_ms,
        index_interval_bytes=config.index_interval_bytes,
        batch_bytes_max=config.max_batch_bytes,
        log_append_time=config.message_timestamp_type == "LogAppendTime",
    )
