"""Records of one topic while they are sent one at a time, and the columns that they become.

Owns: how a record lies in the open batch, and when that batch is full. Refuses: locks and threads;
`buffer` and `producer` say who may do what when.

A batch of rows is one flat list. Each record is 1, 2 or 6 cells of it, put there by a single call
of the list, so that no interruption (Ctrl-C, another thread) can shift one column against another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.client.columns import Columns, OnDelivery, Single
from ray_stream.client.partitioner import NO_PARTITION
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.types import Headers

PLAIN = 1
"""A cell a record: its value."""
KEYED = 2
"""Key, value."""
FULL = 6
"""Key, value, partition, timestamp, headers, callback."""

Row = tuple[Any, ...]


class OpenRows:
    """The open batch of one topic."""

    __slots__ = (
        "bytes",
        "full_at",
        "generation",
        "granted",
        "limit",
        "opened_ms",
        "record_max",
        "rows",
        "stamp_ms",
        "taken",
        "topic",
        "width",
    )

    def __init__(
        self,
        topic: TopicMetadata,
        width: int,
        full_at: int,
        record_max: int,
        opened_ms: int,
        stamp_ms: int,
    ) -> None:
        """An empty batch.

        Args:
            topic: whose records these are, as it is known now.
            width: cells a record.
            full_at: bytes of records at which the batch is complete.
            record_max: bytes of the largest record that the topic takes.
            opened_ms: monotonic.
            stamp_ms: wall clock; the timestamp of records that bring none.
        """
        self.topic = topic
        self.width = width
        self.full_at = full_at
        self.record_max = record_max
        self.opened_ms = opened_ms
        self.stamp_ms = stamp_ms
        self.rows: list[Any] = []
        self.bytes = 0
        self.granted = 0
        """Bytes of the producer's buffer that are set aside for this batch."""
        self.limit = 0
        """Below so many bytes a record may be put here without asking; 0: sealed."""
        self.generation: int | None = None
        """The flush that it belongs to; None until it is sealed."""
        self.taken: int | None = None
        """Cells that are delivered from here; None until it is taken for building."""

    def take(self) -> None:
        """Close it for good: what is put here from now on has to be put elsewhere again."""
        self.limit = 0
        self.taken = len(self.rows)

    def leftover(self) -> list[Any]:
        """Take out what was put here after all by somebody who was overtaken."""
        assert self.taken is not None, "only a batch that was taken can leave something over"
        late = self.rows[self.taken :]
        del self.rows[self.taken :]
        return late

    def single(self) -> Single | None:
        """What was taken, if it is one record that needs no columns."""
        if self.taken != self.width:
            return None
        cells = self.rows[: self.width]
        if self.width == FULL:
            key, value, partition, timestamp, headers, callback = cells
        else:
            headers = None
            key, value = cells if self.width == KEYED else (None, *cells)
            partition = timestamp = callback = None
        if headers or (key is None and value is None):
            return None
        return Single(
            key,
            value,
            partition,
            self.stamp_ms if timestamp is None else timestamp,
            self.opened_ms,
            self.generation or 0,
            [] if callback is None else [(0, callback)],
        )

    def columns(self) -> Columns:
        """What was taken, as columns."""
        assert self.taken is not None, "what is still open grows while it is looked at"
        rows = self.rows if len(self.rows) == self.taken else self.rows[: self.taken]
        columns = Columns(
            key=None,
            value=None,
            timestamp=None,
            headers=None,
            partition=None,
            base_timestamp=self.stamp_ms,
            created_ms=self.opened_ms,
            generation=self.generation or 0,
            is_ours=True,
        )
        if self.width == PLAIN:
            columns.value = _values(rows)
            return columns
        columns.key = binary_column(rows[0 : self.taken : self.width])
        columns.value = _values(rows[1 : self.taken : self.width])
        if self.width == FULL:
            _add_extras(columns, rows)
        return columns


def _values(cells: Sequence[bytes | None]) -> pa.Array:
    column = binary_column(cells)
    return pa.nulls(len(cells), pa.binary()) if column is None else column


def binary_column(cells: Sequence[bytes | None]) -> pa.Array | None:
    """A `binary` column; None if every cell is.

    `pa.array` would do, were it not that its first call imports pandas wherever that is installed:
    half a second for the first record, and at interpreter exit, where records may still be under
    way, the import fails.
    """
    count = len(cells)
    validity = None
    try:
        data = b"".join(cells)  # type: ignore[arg-type]
    except TypeError:  # there are nulls
        valid = np.fromiter((cell is not None for cell in cells), np.bool_, count)
        if not valid.any():
            return None
        validity = pa.py_buffer(np.packbits(valid, bitorder="little"))
        cells = [b"" if cell is None else cell for cell in cells]
        data = b"".join(cells)  # type: ignore[arg-type]
    buffers = [validity, pa.py_buffer(_cell_offsets(cells)), pa.py_buffer(data)]  # type: ignore[arg-type]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _cell_offsets(cells: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """Where each cell begins, and the last one ends."""
    count, lengths = len(cells), list(map(len, cells))
    # Equal lengths are the usual case, and counted in half the time that an array of them takes.
    if lengths and lengths.count(lengths[0]) == count:
        return np.arange(count + 1, dtype=np.int32) * np.int32(lengths[0])
    offsets = np.zeros(count + 1, np.int32)
    try:  # short ones make bytes faster than numbers
        numbers: npt.NDArray[Any] = np.frombuffer(bytes(lengths), np.uint8)
    except ValueError:
        numbers = np.array(lengths, np.int32)
    np.cumsum(numbers, out=offsets[1:])
    return offsets


def _integer_column(numbers: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _header_column(rows: Sequence[Headers | None]) -> pa.Array:
    headers = [header for row in rows if row for header in row]
    names = binary_column([name.encode() for name, _ in headers])
    values = _values([value for _, value in headers])
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(np.fromiter((len(row or ()) for row in rows), np.int32, len(rows)), out=offsets[1:])
    assert names is not None, "asked only where there are headers"
    return pa.MapArray.from_arrays(
        _integer_column(offsets, pa.int32()),
        pa.Array.from_buffers(pa.string(), len(names), names.buffers()),
        values,
    )


def _add_extras(columns: Columns, rows: list[Any]) -> None:
    partitions = rows[2::FULL]
    if partitions[0] is not None and partitions.count(partitions[0]) == len(partitions):
        columns.partition = partitions[0]
    elif any(partition is not None for partition in partitions):
        columns.partition = np.array(
            [NO_PARTITION if partition is None else partition for partition in partitions], np.int64
        )
    timestamps = rows[3::FULL]
    if any(timestamp is not None for timestamp in timestamps):
        times = [columns.base_timestamp if time is None else time for time in timestamps]
        columns.timestamp = _integer_column(np.array(times, np.int64), pa.int64())
    headers = rows[4::FULL]
    if any(headers):
        columns.headers = _header_column(headers)
    callbacks: list[OnDelivery | None] = list(rows[5::FULL])
    columns.callbacks = [
        (row, callback) for row, callback in enumerate(callbacks) if callback is not None
    ]


def narrowed(row: Row) -> Row:
    """A full record in as few cells as hold it."""
    if row[KEYED:] != (None,) * (FULL - KEYED):
        return row
    return row[:KEYED] if row[0] is not None else row[1:KEYED]


def widened(rows: list[Any], width: int, wider: int) -> list[Any]:
    """The same records with more cells each."""
    if width == wider:
        return rows
    cells: list[Any] = []
    empty = (None,) * (wider - max(width, KEYED))
    for start in range(0, len(rows), width):
        record = (None, rows[start]) if width == PLAIN else rows[start : start + width]
        cells += (*record, *empty)
    return cells
