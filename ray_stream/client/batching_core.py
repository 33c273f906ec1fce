"""From the columns of one topic to the batches of its partitions.

Owns: which row goes to which partition, splitting columns, building the bytes of a batch once, and
what a batch remembers about its records until they are delivered. Refuses: sequences and sending
(`lane_core`, `producer_core`), and threads.

Rows of one partition keep the order of the columns. Nothing here makes an object for a record,
except for those that asked to be told of their delivery.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.client.partitioner import (
    NO_PARTITION,
    StickyPartitioner,
    partition_of_key,
    partitions_of_keys,
)
from ray_stream.config import PARTITIONS_MAX
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.arrays import integers, validity
from ray_stream.records.builder import RecordColumns, build_batch, validate
from ray_stream.records.header import Buffer, Compression, with_producer
from ray_stream.records.single import build_single
from ray_stream.types import NO_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, RecordMetadata

_WINDOW_ROWS = 16_384

OnDelivery = Callable[[RecordMetadata | None, RayStreamError | None], object]
"""Called once: with where the record stands, or with why it does not."""


@dataclass(slots=True)
class Single:
    """One record that is sent alone. As `Columns`, but nothing of it is a column."""

    key: bytes | None
    value: bytes | None
    partition: int | None
    """Chosen by the user, or by key."""
    base_timestamp: int
    """ms; its own."""
    created_ms: int
    generation: int
    callbacks: list[tuple[int, OnDelivery]]

    count = 1
    timestamp = None

    def total_bytes(self) -> int:
        """Key and value; an empty record counts as one."""
        return len(self.key or b"") + len(self.value or b"") or 1


@dataclass(slots=True)
class Columns:
    """Rows of one topic in their order, a column each."""

    key: pa.Array | None
    value: pa.Array | None
    timestamp: pa.Array | None
    headers: pa.Array | None
    partition: int | npt.NDArray[np.int64] | None
    """One for all rows, or one for each (`NO_PARTITION`: by key), or by key for all."""
    base_timestamp: int
    """ms; of the rows without a timestamp."""
    created_ms: int
    """Monotonic; delivery times out counted from here."""
    generation: int = 0
    """The shell's mark, for flushes."""
    callbacks: list[tuple[int, OnDelivery]] = field(default_factory=list)
    """(row, callback), by row."""
    is_ours: bool = False
    """Arrow or this package made the arrays, so that nothing in them can be damaged."""

    @property
    def count(self) -> int:
        """The rows."""
        column = self.value if self.value is not None else self.key
        return 0 if column is None else len(column)

    def slice(self, start: int, stop: int) -> "Columns":
        """A run of rows, uncopied."""
        length = stop - start
        partition = self.partition
        first = bisect_left(self.callbacks, start, key=itemgetter(0))
        behind = bisect_left(self.callbacks, stop, first, key=itemgetter(0))
        return Columns(
            None if self.key is None else self.key.slice(start, length),
            None if self.value is None else self.value.slice(start, length),
            None if self.timestamp is None else self.timestamp.slice(start, length),
            None if self.headers is None else self.headers.slice(start, length),
            partition[start:stop] if isinstance(partition, np.ndarray) else partition,
            self.base_timestamp,
            self.created_ms,
            self.generation,
            [(row - start, call) for row, call in self.callbacks[first:behind]],
            self.is_ours,
        )

    def reordered(self, order: npt.NDArray[np.int64]) -> "Columns":
        """The same rows in another order; partitions are left out.

        Args:
            order: the present row of each new one.
        """
        rows = pa.Array.from_buffers(pa.int64(), len(order), [None, pa.py_buffer(order)])
        callbacks: list[tuple[int, OnDelivery]] = []
        if self.callbacks:
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            placed = [(int(place[row]), call) for row, call in self.callbacks]
            callbacks = sorted(placed, key=itemgetter(0))
        return Columns(
            None if self.key is None else self.key.take(rows),
            None if self.value is None else self.value.take(rows),
            None if self.timestamp is None else self.timestamp.take(rows),
            None if self.headers is None else self.headers.take(rows),
            None,
            self.base_timestamp,
            self.created_ms,
            self.generation,
            callbacks,
            is_ours=True,
        )

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each row: key, value and headers; an empty row counts as one."""
        sizes = np.zeros(self.count, np.int64)
        for column in (self.key, self.value):
            if column is not None:
                sizes += binary_lengths(column)
        if self.headers is not None:
            sizes += _header_bytes(self.headers)
        np.maximum(sizes, 1, out=sizes)
        return sizes

    def size_windows(self, start: int = 0) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """`sizes` from row `start` on in short runs, each with its first row.

        Ten times faster than all at once: memory that is touched for the first time is what costs.
        """
        while start < self.count:
            stop = min(start + _WINDOW_ROWS, self.count)
            yield start, self.slice(start, stop).sizes()
            start = stop

    def run_of_bytes(self, start: int, size: int) -> tuple[int, int]:
        """The longest run of rows from `start` on within `size` bytes, but at least one row.

        Returns:
            The row behind it, and its bytes.
        """
        taken = 0
        stop = start
        for first, sizes in self.size_windows(start):
            ends = np.cumsum(sizes)
            fitting = int(np.searchsorted(ends, size - taken, side="right"))
            if first + fitting == start:
                return start + 1, int(sizes[0])
            stop = first + fitting
            taken += int(ends[fitting - 1]) if fitting else 0
            if fitting < len(sizes):
                break
        return stop, taken

    def total_bytes(self) -> int:
        """Sum of `sizes`."""
        if self.headers is None and self.value is not None and self.count:
            ends = [_offsets(column) for column in (self.value, self.key) if column is not None]
            nulls = self.value.null_count or (self.key is not None and self.key.null_count)
            if not nulls and (ends[0][1:] > ends[0][:-1]).all():  # no row is empty
                return sum(int(offsets[-1]) - int(offsets[0]) for offsets in ends)
        return int(self.sizes().sum())


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
        "pieces",
        "record_bytes",
        "record_count",
        "resolved",
        "retry_at_ms",
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
        pieces: list[Buffer],
    ) -> None:
        self.topic = topic.name
        self.topic_id = topic.topic_id
        self.partition = partition
        self.record_count = columns.count
        self.record_bytes = columns.total_bytes()
        self.created_ms = columns.created_ms
        self.generation = columns.generation
        self.callbacks = columns.callbacks
        self.timestamp = columns.timestamp if columns.callbacks else None
        self.base_timestamp = columns.base_timestamp
        self.pieces: list[Buffer] | None = pieces
        self.data: bytes = b""
        """Header and payload as they are sent, again and again; empty before the first time."""
        self.ordinal = -1
        """Its place among all batches that its lane ever sent."""
        self.attempt: int | None = None
        """The request whose answer is awaited."""
        self.went_first = False
        """Whether nothing in front of it was unresolved when it was sent last."""
        self.attempts = 0
        self.lost_attempts: list[int] = []
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
        assert self.pieces is not None, "a batch is numbered once"
        header = with_producer(
            self.pieces[0],
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )
        self.data = b"".join((header, *self.pieces[1:]))
        self.pieces = None

    @property
    def may_be_applied(self) -> bool:
        """Whether some request that carried it is unanswered, so that nobody can say."""
        return bool(self.lost_attempts) or self.attempt is not None

    def timestamp_of(self, row: int) -> int:
        """The producer's time of one record; kept only where callbacks ask for it."""
        return self.base_timestamp if self.timestamp is None else int(self.timestamp[row].as_py())

    def bytes(self) -> bytes:
        """Header and payload, numbered or not."""
        return self.data if self.pieces is None else b"".join(self.pieces)


class Batcher:
    """Makes batches of columns.

    Args:
        batch_size: bytes for which keyless records stay on one partition.
        compression: how payloads are wrapped.
        rng: for the choice of partitions for keyless records.
    """

    def __init__(self, batch_size: int, compression: Compression, rng: random.Random) -> None:
        self._batch_size = batch_size
        self._compression = compression
        self._rng = rng
        self._sticky: dict[str, StickyPartitioner] = {}
        """By topic id: one that is made anew may have fewer partitions."""

    def build(self, topic: TopicMetadata, columns: Columns) -> list[Batch]:
        """The batches that hold these rows, in the order of first rows and then partitions.

        Args:
            topic: where they go; partitions are counted here.
            columns: at least one row.

        Raises:
            SchemaError, InvalidTimestampError, RecordTooLargeError: as `build_batch`.
        """
        batches: list[Batch] = []
        if not columns.is_ours:
            for column in (columns.key, columns.value, columns.timestamp):
                if column is not None:
                    validate(column)  # before anything is taken from it by its offsets
        # What is built for all partitions at once may be much for one of them.
        rows_max = 2 * columns.count * self._batch_size // columns.total_bytes() + 1
        for partition, rows in self._split(topic, columns):
            if rows.count <= rows_max:
                self._build(topic, partition, rows, batches)
                continue
            for start in range(0, rows.count, rows_max):
                part = rows.slice(start, min(rows.count, start + rows_max))
                self._build(topic, partition, part, batches)
        return batches

    def build_single(self, topic: TopicMetadata, record: Single) -> Batch:
        """The batch of a record that is sent alone.

        Raises:
            InvalidTimestampError, RecordTooLargeError: as `build_single`.
        """
        partition = record.partition
        if partition is None and record.key is not None:
            partition = partition_of_key(record.key, len(topic.partitions))
        if partition is None:
            partition = self._keyless(topic, record.total_bytes())
        pieces = build_single(record.key, record.value, record.base_timestamp)
        return Batch(topic, partition, record, pieces)

    @property
    def builds_singles(self) -> bool:
        """Whether records that are sent alone may be built as such."""
        return self._compression == Compression.NONE

    def _build(
        self, topic: TopicMetadata, partition: int, columns: Columns, batches: list[Batch]
    ) -> None:
        pieces = build_batch(
            RecordColumns(
                key=columns.key,
                value=columns.value,
                timestamp=columns.timestamp,
                headers=columns.headers,
                base_timestamp=columns.base_timestamp,
                is_ours=True,
            ),
            compression=self._compression,
        )
        count = columns.count
        if count > 1 and sum(map(len, pieces)) > topic.config.max_batch_bytes:
            self._build(topic, partition, columns.slice(0, count // 2), batches)
            self._build(topic, partition, columns.slice(count // 2, count), batches)
        else:
            batches.append(Batch(topic, partition, columns, pieces))

    def _split(self, topic: TopicMetadata, columns: Columns) -> list[tuple[int, Columns]]:
        if isinstance(columns.partition, int):
            return [(columns.partition, columns)]
        count = len(topic.partitions)
        if count == 1:
            return [(0, columns)]
        if columns.partition is None and columns.key is None:
            return [(self._keyless(topic, columns.total_bytes()), columns)]
        chosen = self._chosen(topic, columns, count)
        first = int(chosen[0])
        if (chosen == first).all():
            return [(first, columns)]
        assert count <= PARTITIONS_MAX, (
            "two bytes hold a partition number, and sort five times faster"
        )
        ordered = columns.reordered(np.argsort(chosen.astype(np.uint16), kind="stable"))
        ends = np.cumsum(np.bincount(chosen, minlength=count))
        starts = np.concatenate(([0], ends[:-1]))
        used = np.flatnonzero(ends > starts)
        return [
            (int(partition), ordered.slice(int(starts[partition]), int(ends[partition])))
            for partition in used
        ]

    def _chosen(self, topic: TopicMetadata, columns: Columns, count: int) -> npt.NDArray[np.int64]:
        if columns.key is None:
            chosen = np.full(columns.count, NO_PARTITION, np.int64)
        else:
            chosen = partitions_of_keys(columns.key, count)
        if isinstance(columns.partition, np.ndarray):
            chosen = np.where(columns.partition == NO_PARTITION, chosen, columns.partition)
        keyless = chosen == NO_PARTITION
        if keyless.any():
            chosen[keyless] = self._keyless(topic, columns.total_bytes())
        return chosen

    def _keyless(self, topic: TopicMetadata, size: int) -> int:
        sticky = self._sticky.get(topic.topic_id)
        if sticky is None:
            sticky = StickyPartitioner(self._batch_size, self._rng)
            self._sticky[topic.topic_id] = sticky
        return sticky.choose(size, lambda: _available(topic))


def _available(topic: TopicMetadata) -> Sequence[int]:
    """The partitions that something serves; all, if nothing serves any."""
    served = [entry.partition for entry in topic.partitions if entry.host]
    return served or range(len(topic.partitions))


def binary_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each row of a `binary` or `string` array, 0 where it is null."""
    if not len(column):
        return np.empty(0, np.int64)
    lengths = np.diff(_offsets(column)).astype(np.int64)
    if column.null_count:
        lengths[~validity(column)] = 0
    return lengths


def _offsets(column: pa.Array) -> npt.NDArray[np.int32]:
    """Where each row of a `binary` or `string` array begins, and the last one ends."""
    return np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, 4 * column.offset)


def _header_bytes(headers: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of names and values of each row's headers."""
    offsets = integers(headers.offsets)
    first, count = int(offsets[0]), int(offsets[-1] - offsets[0])
    ends = np.zeros(count + 1, np.int64)
    for part in (headers.keys, headers.items):
        ends[1:] += np.cumsum(binary_lengths(part.slice(first, count)))
    sizes: npt.NDArray[np.int64] = np.diff(ends[offsets - first])
    return sizes
