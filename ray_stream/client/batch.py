"""A batch between a producer and its log: its bytes, built once, and how far it has come.

Owns: what is remembered of a batch until its outcome is known. Refuses: deciding about it
(`lane_core`, `producer_core`).
"""

from ray_stream.client.columns import Columns, Single
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.gathered import Gathered, Part
from ray_stream.records.header import stamp_producer
from ray_stream.types import NO_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE


class Batch:
    """Records of one partition, built once, and how far their delivery has come."""

    __slots__ = (
        "attempt",
        "attempts",
        "base_timestamp",
        "callbacks",
        "created_ms",
        "data",
        "generation",
        "last_error",
        "lost_attempts",
        "ordinal",
        "partition",
        "record_bytes",
        "record_count",
        "resolved",
        "retry_at_ms",
        "size",
        "timestamp",
        "topic",
        "topic_id",
        "went_first",
    )

    def __init__(
        self,
        topic: TopicMetadata,
        partition: int,
        columns: Columns | Single,
        data: Part,
        *,
        count: int,
        record_bytes: int,
    ) -> None:
        """One that was never sent.

        Args:
            topic: where it goes.
            partition: of the topic.
            columns: what its records are rows of, or the record; callbacks are all its own.
            data: header and payload; the header can be written to.
            count: its records.
            record_bytes: of keys, values and headers.
        """
        self.topic = topic.name
        self.topic_id = topic.topic_id
        self.partition = partition
        self.record_count = count
        self.record_bytes = record_bytes
        self.created_ms = columns.created_ms
        self.generation = columns.generation
        self.callbacks = columns.callbacks
        self.timestamp = columns.timestamp if columns.callbacks else None
        self.base_timestamp = columns.base_timestamp
        self.data = data
        """Header and payload; once stamped, as they are sent, again and again."""
        self.size = len(self.data)
        self.ordinal = -1
        """Its place among all batches that its lane ever sent."""
        self.attempt: int | None = None
        """The request whose answer is awaited."""
        self.went_first = False
        """Whether nothing in front of it was unresolved when it was sent last."""
        self.attempts = 0
        self.lost_attempts: tuple[int, ...] = ()
        """Requests that were never answered: each may have been applied."""
        self.retry_at_ms = 0
        self.last_error: RayStreamError | None = None
        self.resolved = False

    def stamp(
        self,
        producer_id: int = NO_PRODUCER_ID,
        producer_epoch: int = NO_EPOCH,
        base_sequence: int = NO_SEQUENCE,
    ) -> None:
        """Fix the bytes for good: the batch is about to be sent for the first time."""
        assert self.ordinal < 0, "a batch is numbered once"
        stamp_producer(
            self._header,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )

    @property
    def _header(self) -> bytearray | memoryview:
        """The buffer that begins with it."""
        first = self.data.pieces[0] if isinstance(self.data, Gathered) else self.data
        assert not isinstance(first, bytes), "headers are made in memory that can be written"
        return first

    @property
    def may_be_applied(self) -> bool:
        """Whether some request that carried it is unanswered, so that nobody can say."""
        return bool(self.lost_attempts) or self.attempt is not None

    def timestamp_of(self, row: int) -> int:
        """The producer's time of one record; kept only where callbacks ask for it."""
        return self.base_timestamp if self.timestamp is None else int(self.timestamp[row].as_py())

    def bytes(self) -> bytes:
        """Header and payload in one place."""
        if self.ordinal < 0:
            self.stamp()  # so that it is whole; its numbers come when it is sent
        return bytes(self.data)
