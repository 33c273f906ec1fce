"""Requests and answers between clients, partition actors, brokers and the controller.

Owns: the shapes, with every field that DESIGN section 5 wants from the first version on; unused
ones have defaults. Refuses: transport and encoding (`rpc.wire`).

Batches travel beside a message, not inside: `batches` is a list of buffers that a transport sends
as they are. Answers are per partition: an error, or a result. Metadata commands are those of
`metadata.commands`.
"""

from typing import Any

import msgspec

from ray_stream import errors
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import BrokerMetadata, TopicMetadata
from ray_stream.types import NO_EPOCH

API_VERSION = 1
"""Checked when a client connects; a mismatch is `VersionMismatchError`."""

EARLIEST = -2
LATEST = -1


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """An error of `ray_stream.errors` on its way between processes: its class and its arguments."""

    name: str
    arguments: list[Any]

    @classmethod
    def of(cls, error: RayStreamError) -> "ErrorInfo":
        """Describe an error; its arguments are its whole state."""
        return cls(type(error).__name__, list(error.args))

    def to_error(self) -> RayStreamError:
        """The error again; an unknown name (a newer peer's) becomes the base class."""
        kind = getattr(errors, self.name, None)
        if isinstance(kind, type) and issubclass(kind, RayStreamError):
            return kind(*self.arguments)
        return RayStreamError(f"{self.name}: {self.arguments}")


# --- partitions --------------------------------------------------------------------------------


class ProducePartition(msgspec.Struct, frozen=True, array_like=True):
    """The address of one batch."""

    topic_id: str
    partition: int
    leader_epoch: int


class ProduceRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Append one batch to each of some partitions."""

    acks: int
    """0: no answer is waited for; 1: the leader; -1: all in-sync replicas."""
    timeout_ms: int
    partitions: list[ProducePartition]
    batches: list[Any]
    """One batch (header and payload) for each entry of `partitions`: in one buffer when it was
    received, and as it lies (`records.gathered.Part`) when it is sent."""


class ProduceResult(msgspec.Struct, frozen=True, array_like=True):
    """What became of one batch."""

    topic_id: str
    partition: int
    error: ErrorInfo | None = None
    base_offset: int = -1
    append_timestamp: int = -1
    log_append_time: bool = False
    log_start: int = -1
    leader_epoch: int = NO_EPOCH
    durability: str = ""
    duplicate: bool = False


class ProduceResponse(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One result for each batch, in the order of the request."""

    results: list[ProduceResult]


class FetchPartition(msgspec.Struct, frozen=True, array_like=True):
    """From where to read one partition."""

    topic_id: str
    partition: int
    leader_epoch: int
    """The leader epoch that the client knows; -1: any."""
    fetch_offset: int
    max_bytes: int
    last_fetched_epoch: int = NO_EPOCH
    log_start: int = -1


class FetchRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Read whole batches; parks until `min_bytes` are there or `max_wait_ms` are over."""

    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    partitions: list[FetchPartition]
    isolation_level: str = "read_committed"
    replica_id: int = -1
    replica_incarnation: str = ""
    boot_id: str = ""
    """Of the reader's machine, if it may read files itself; empty: the answer carries the bytes."""
    extent_bytes: int = 0
    """How far each extent may reach; 0: the reader wants bytes. It costs no memory to be told."""


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """Where whole batches are, in a file of the leader's machine; see `log.reader.Extent`."""

    path: str
    position: int
    length: int
    header: bytes
    end_offset: int


class FetchResult(msgspec.Struct, frozen=True, array_like=True):
    """Ends of one partition, and how many of the answer's buffers are its batches."""

    topic_id: str
    partition: int
    error: ErrorInfo | None = None
    buffers: int = 0
    high_watermark: int = -1
    last_stable_offset: int = -1
    log_start: int = -1
    leader_epoch: int = NO_EPOCH
    diverging_epoch: tuple[int, int] | None = None
    aborted: list[tuple[int, int]] = []
    preferred_replica: int = -1
    extent: Extent | None = None
    """In place of buffers: the reader is on this machine and reads them itself."""


class FetchResponse(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Results in the order of the request; `batches` holds their buffers one behind the other.

    A buffer is a run of whole stored batches. The first may start below the offset asked for.
    """

    results: list[FetchResult]
    batches: list[Any]


class ListOffsetsPartition(msgspec.Struct, frozen=True, array_like=True):
    """One question: `EARLIEST`, `LATEST` (the readable end), or a time: the first batch for it."""

    topic_id: str
    partition: int
    leader_epoch: int
    timestamp: int


class ListOffsetsRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Ask for offsets by position or time."""

    partitions: list[ListOffsetsPartition]
    isolation_level: str = "read_committed"
    replica_id: int = -1


class ListOffsetsResult(msgspec.Struct, frozen=True, array_like=True):
    """The offset, -1 when no record is that young."""

    topic_id: str
    partition: int
    error: ErrorInfo | None = None
    offset: int = -1
    timestamp: int = -1
    leader_epoch: int = NO_EPOCH


class ListOffsetsResponse(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One result for each question, in order."""

    results: list[ListOffsetsResult]


# --- the controller, as clients see it -----------------------------------------------------------


class MetadataRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Describe topics: by name, or all of them."""

    topics: list[str] | None
    api_version: int = API_VERSION


class MetadataResponse(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The topics that exist among those asked for; names that do not are left out."""

    cluster_id: str
    controller_epoch: int
    version: int
    topics: list[TopicMetadata]
    brokers: list[BrokerMetadata]
    opening: int = 0
    """Partitions of all topics that nothing serves yet and a living broker is about to."""


class WatchAssignment(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A broker waits for its assignment to differ from `known_version`; also its sign of life."""

    broker_id: int
    broker_epoch: int
    known_version: int
    max_wait_ms: int


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The whole request failed."""

    error: ErrorInfo
