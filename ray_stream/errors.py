"""Every error a caller may see: one tree, drawn here.

Owns: names, Kafka's numbers, whether a retry may help. Refuses: deciding when to raise.

* RayStreamError
  - UnknownOptionError, InvalidConfigError, ConfigNotEnforcedError
  - ClosedError, ConcurrentAccessError, ForkedProcessError, TimeoutExpiredError
  - ClusterNotFoundError, ClusterConfigMismatchError, ActorStartError, RayStartError
  - DataDir…Error, StorageOfflineError
  - Unknown…, Invalid…, …AlreadyExistsError: what was asked for is wrong
  - RecordTooLargeError, SchemaError, SerializationError, DeserializationError
  - CorruptRecordError, OffsetOutOfRangeError
  - DeliveryError, FlushTimeoutError, BufferFullError
  - ProducerFencedError, OutOfOrderSequenceError, UnknownProducerIdError …
  - GroupIdNotFoundError, NonEmptyGroupError, UnknownMemberIdError, Fenced…, StaleMemberEpochError …
  - HandlerError, ConsumerActorError
  + RetriableError: the same request may succeed later
    - NotLeaderOrFollowerError, FencedLeaderEpochError, LeaderNotAvailableError …
    - OutcomeUnknownError: it may have been applied, or not

Positional arguments are an error's whole state, so that a copy that crossed processes is equal to
the original. Where Kafka has the error, `code` is Kafka's number.
"""

from ray_stream.error_roots import RayStreamError as RayStreamError
from ray_stream.error_roots import RetriableError as RetriableError
from ray_stream.group_errors import ConsumerActorError as ConsumerActorError
from ray_stream.group_errors import FencedInstanceIdError as FencedInstanceIdError
from ray_stream.group_errors import FencedMemberEpochError as FencedMemberEpochError
from ray_stream.group_errors import GroupIdNotFoundError as GroupIdNotFoundError
from ray_stream.group_errors import GroupMaxSizeReachedError as GroupMaxSizeReachedError
from ray_stream.group_errors import HandlerError as HandlerError
from ray_stream.group_errors import InvalidGroupIdError as InvalidGroupIdError
from ray_stream.group_errors import InvalidRegularExpressionError as InvalidRegularExpressionError
from ray_stream.group_errors import InvalidSessionTimeoutError as InvalidSessionTimeoutError
from ray_stream.group_errors import NonEmptyGroupError as NonEmptyGroupError
from ray_stream.group_errors import OffsetMetadataTooLargeError as OffsetMetadataTooLargeError
from ray_stream.group_errors import RebalanceInProgressError as RebalanceInProgressError
from ray_stream.group_errors import StaleMemberEpochError as StaleMemberEpochError
from ray_stream.group_errors import UnknownMemberIdError as UnknownMemberIdError
from ray_stream.group_errors import UnsupportedAssignorError as UnsupportedAssignorError

# --- what the caller typed ---------------------------------------------------------------------


class UnknownOptionError(RayStreamError, TypeError):
    """An option or config key that does not exist; the message names the nearest."""

    code = 40


class InvalidConfigError(RayStreamError, ValueError):
    """A config value out of its range or of the wrong type."""

    code = 40


class ConfigNotEnforcedError(InvalidConfigError):
    """A known config key that this version would not act on, so it is refused, not stored."""


class InvalidArgumentError(RayStreamError, ValueError):
    """An argument that cannot be used."""

    code = 42


class InvalidTopicError(RayStreamError, ValueError):
    """A topic name that is empty, too long, or holds characters other than `[a-zA-Z0-9._-]`."""

    code = 17


class InvalidPartitionsError(RayStreamError, ValueError):
    """A partition count out of range."""

    code = 37


class InvalidReplicationFactorError(RayStreamError, ValueError):
    """A replication factor that this cluster cannot serve."""

    code = 38


class InvalidTimestampError(RayStreamError, ValueError):
    """A record timestamp that is negative or out of the topic's bounds."""

    code = 32


class InvalidRecordError(RayStreamError, ValueError):
    """A record or batch that breaks a rule of the log."""

    code = 87


class SchemaError(RayStreamError, ValueError):
    """A batch with a column that is missing, unexpected or of the wrong type."""

    code = 87


class RecordTooLargeError(RayStreamError, ValueError):
    """A record above `max_message_bytes`, or a batch above `max_batch_bytes`."""

    code = 10


class SerializationError(RayStreamError, TypeError):
    """A key or value that is not bytes, and no serializer (or one that failed)."""


class DeserializationError(RayStreamError):
    """A deserializer failed; the position stays on the record, `seek` past it to go on."""

    def __init__(self, topic: str, partition: int, offset: int, reason: str) -> None:
        super().__init__(topic, partition, offset, reason)
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"record {self.topic}-{self.partition}@{self.offset} could not be deserialized: "
            f"{self.reason}; seek({self.offset + 1}) skips it"
        )


# --- life cycle --------------------------------------------------------------------------------


class ClosedError(RayStreamError):
    """The handle was closed; make a new one."""


class ConcurrentAccessError(RayStreamError):
    """A consumer was used by two threads at once."""


class ForkedProcessError(RayStreamError):
    """A handle was used in a forked child; make a new one there."""


class TimeoutExpiredError(RayStreamError, TimeoutError):
    """A call did not end within its timeout; whether it took effect is unknown."""

    code = 7


class ClusterNotFoundError(RayStreamError):
    """No cluster of that name is running where we looked."""


class ClusterConfigMismatchError(RayStreamError):
    """The cluster already runs with another `data_dir` or `config`."""


class ActorStartError(RayStreamError):
    """An actor of the cluster could not be started; the message has Ray's reason."""


class RayStartError(RayStreamError):
    """A local Ray could not be started; the message says why, and what to do."""


class InconsistentClusterIdError(RayStreamError):
    """A data directory that belongs to another cluster."""

    code = 104


class RayNotRunningError(RayStreamError):
    """Ray was shut down under a handle."""


class ProtocolError(RayStreamError):
    """Bytes from a peer that are no frame of ours, or one that is not taken; it is cut off."""

    code = 2


class AuthenticationError(RayStreamError):
    """A peer did not prove that it knows the cluster's secret."""

    code = 58


class VersionMismatchError(RayStreamError):
    """Client and cluster speak different versions."""

    code = 35


# --- data directories and disks ----------------------------------------------------------------


class DataDirError(RayStreamError):
    """A data directory that cannot be used: not writable, a file, not ours."""

    code = 57


class DataDirInUseError(DataDirError):
    """Another living process owns the directory; the message names its pid and Ray address."""


class DataDirSharedError(DataDirError):
    """One directory is seen from two hosts: it lies on a shared file system."""


class DataDirVersionError(DataDirError):
    """The directory was written by a newer version."""


class StorageOfflineError(RayStreamError):
    """The replica is offline after a failed sync; `ray-stream repair` brings it back."""

    code = 56


class StorageFullError(RetriableError):
    """The disk is full, or too many files are open: appends are refused, reads go on."""

    code = 56


class StorageError(RayStreamError):
    """The operating system refused a read or write."""

    code = 56


class CorruptMetadataError(RayStreamError):
    """The metadata log or an identity file is damaged; nothing is guessed in its place."""

    code = 2


class CorruptRecordError(RayStreamError):
    """Damaged bytes at rest: never served, never skipped by itself."""

    code = 2

    def __init__(
        self, topic: str, partition: int, first_offset: int, next_offset: int, reason: str
    ) -> None:
        super().__init__(topic, partition, first_offset, next_offset, reason)
        self.topic = topic
        self.partition = partition
        self.first_offset = first_offset
        self.next_offset = next_offset
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.topic}-{self.partition} is damaged from offset {self.first_offset} up to "
            f"{self.next_offset}: {self.reason}; seek({self.next_offset}) goes on behind it"
        )


class CorruptBatchError(RayStreamError):
    """A batch in a request or a file whose checks fail."""

    code = 2


# --- topics, partitions, leaders ---------------------------------------------------------------


class UnknownTopicOrPartitionError(RayStreamError):
    """No such topic, or it has no such partition."""

    code = 3


class UnknownTopicIdError(RayStreamError):
    """The topic was deleted, or made anew under the same name."""

    code = 100


class TopicAlreadyExistsError(RayStreamError):
    """The name is taken; `exist_ok=True` accepts an equal topic."""

    code = 36


class NotLeaderOrFollowerError(RetriableError):
    """The actor asked does not lead the partition."""

    code = 6


class LeaderNotAvailableError(RetriableError):
    """Nothing serves the partition at the moment: its node or actor is down."""

    code = 5


class BrokerNotAvailableError(RetriableError):
    """No living broker could take what was asked for."""

    code = 8


class FencedLeaderEpochError(RetriableError):
    """The request's leader epoch is older than the leader's."""

    code = 74


class UnknownLeaderEpochError(RetriableError):
    """The request's leader epoch is newer than what this actor leads in."""

    code = 75


class StaleControllerEpochError(RayStreamError):
    """A command of a controller that was replaced."""

    code = 11


class StaleBrokerEpochError(RayStreamError):
    """A command or report of a broker incarnation that was replaced."""

    code = 77


class ControllerNotAvailableError(RetriableError):
    """The controller is being replaced."""

    code = 41


class CoordinatorNotAvailableError(RetriableError):
    """The group's coordinator is being made or replaced."""

    code = 15


class NotCoordinatorError(RetriableError):
    """This actor does not coordinate the group, or not any more: ask the controller again."""

    code = 16


class NotEnoughReplicasError(RetriableError):
    """Fewer in-sync replicas than `min_insync_replicas`."""

    code = 19


class OffsetOutOfRangeError(RayStreamError):
    """An offset outside of what the partition holds."""

    code = 1

    def __init__(
        self, topic: str, partition: int, offset: int, log_start: int, log_end: int
    ) -> None:
        super().__init__(topic, partition, offset, log_start, log_end)
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.log_start = log_start
        self.log_end = log_end

    def __str__(self) -> str:
        return (
            f"offset {self.offset} of {self.topic}-{self.partition} is out of range: it holds "
            f"[{self.log_start}, {self.log_end}); seek there, or set auto_offset_reset"
        )


# --- producing ---------------------------------------------------------------------------------


class OutcomeUnknownError(RetriableError):
    """The request may have been applied, or not: its answer never came."""

    code = 7


class ProducerFencedError(RayStreamError):
    """A newer producer took over this producer id."""

    code = 90


class InvalidProducerEpochError(RayStreamError):
    """A producer epoch older than the one the log knows."""

    code = 47


class OutOfOrderSequenceError(RayStreamError):
    """A batch that does not follow the producer's last one."""

    code = 45


class UnknownProducerIdError(RayStreamError):
    """The log knows nothing of this producer, and the batch is not its first."""

    code = 59


class BufferFullError(RayStreamError):
    """`buffer_memory` stayed full for `max_block_ms`; what was accepted before is kept."""


class FlushTimeoutError(RayStreamError, TimeoutError):
    """A flush ran out of time; the records left are still being delivered."""

    def __init__(self, remaining: int) -> None:
        super().__init__(remaining)
        self.remaining = remaining

    def __str__(self) -> str:
        return (
            f"{self.remaining} records are still unacknowledged after the flush's timeout; "
            "they are kept and retried: flush again, or raise the timeout"
        )


class DeliveryError(RayStreamError):
    """Records were not delivered, or nobody knows whether they were.

    `failures` counts records by (topic, partition) as (topic, partition, failed, unknown);
    `records` holds up to the first 1,000 as (topic, partition, key, value, error).
    """

    def __init__(
        self,
        failures: tuple[tuple[str, int, int, int], ...],
        records: tuple[tuple[str, int, bytes | None, bytes | None, RayStreamError], ...],
        first: RayStreamError,
    ) -> None:
        super().__init__(failures, records, first)
        self.failures = failures
        self.records = records
        self.first = first

    @property
    def failed(self) -> int:
        """Records that certainly were not written."""
        return sum(failed for _, _, failed, _ in self.failures)

    @property
    def unknown(self) -> int:
        """Records that may or may not have been written."""
        return sum(unknown for _, _, _, unknown in self.failures)

    def __str__(self) -> str:
        places = ", ".join(
            f"{topic}-{partition}: {failed} failed, {unknown} unknown"
            for topic, partition, failed, unknown in self.failures[:10]
        )
        more = f" and {len(self.failures) - 10} more partitions" if len(self.failures) > 10 else ""
        return (
            f"{self.failed} records failed and {self.unknown} have an unknown outcome "
            f"({places}{more}); the first error: {self.first}"
        )


# --- groups ------------------------------------------------------------------------------------


class InvariantViolationError(RayStreamError):
    """Our own assertion failed; the component stops rather than go on wrong."""
