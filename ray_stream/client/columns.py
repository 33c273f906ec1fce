"""Rows of one topic as columns, on their way into batches.

Owns: the columns, their slices, orders and sizes. Refuses: partitions and batches
(`batching_core`). Nothing here makes an object for a record, except for those that asked to be told
of their delivery.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.errors import RayStreamError
from ray_stream.records.arrays import integers, validity
from ray_stream.types import RecordMetadata

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
            ends = [
                binary_offsets(column) for column in (self.value, self.key) if column is not None
            ]
            nulls = self.value.null_count or (self.key is not None and self.key.null_count)
            if not nulls and (ends[0][1:] > ends[0][:-1]).all():  # no row is empty
                return sum(int(offsets[-1]) - int(offsets[0]) for offsets in ends)
        return int(self.sizes().sum())


def binary_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each row of a `binary` or `string` array, 0 where it is null."""
    if not len(column):
        return np.empty(0, np.int64)
    lengths = np.diff(binary_offsets(column)).astype(np.int64)
    if column.null_count:
        lengths[~validity(column)] = 0
    return lengths


def binary_offsets(column: pa.Array) -> npt.NDArray[np.int32]:
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
