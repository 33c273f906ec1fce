"""Many batches at once: rows of keys and values, sorted by partition, to the bytes of each batch.

Owns: the short way for batches of which there are many, byte for byte what `builder` builds.
Refuses: nulls, other columns and compression (`builder`), and choosing partitions.

What `builder` does for one batch takes some forty calls of Python and Arrow. Here each of them is
one call of NumPy for all batches, and only checksums are taken batch by batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import crc32c
import numpy as np
import numpy.typing as npt

from ray_stream.errors import InvalidTimestampError, RecordTooLargeError
from ray_stream.records.arrow_message import metadata_words
from ray_stream.records.gathered import Gathered, Part
from ray_stream.records.header import (
    HEADER_BYTES,
    LENGTH_MAX,
    Buffer,
    header_rows,
)

INLINE_BYTES = 32 * 1024
"""Below so many bytes a batch, values are copied beside the rest: one buffer instead of six."""

_WORD = 8
_PADDING = tuple(bytes(length) for length in range(_WORD))

Int64s = npt.NDArray[np.int64]


class ShardColumn(NamedTuple):
    """Keys or values of all rows, in the order of the batches."""

    flag: int
    """`FLAG_KEY` or `FLAG_VALUE`."""
    lengths: Int64s
    """Bytes of each row's cell."""
    data: memoryview
    """The cells, one behind the other."""


class _Place(NamedTuple):
    """Where a column of each batch lies: in the buffer of all batches, and in its own data."""

    offsets: Int64s
    """The first of its offsets, in bytes."""
    cells: Int64s
    """Where its cells begin, if they are copied."""
    first: Int64s
    """Its first byte in `ShardColumn.data`."""
    length: Int64s
    """How many bytes of it."""


def build_shards(
    columns: Sequence[ShardColumn], starts: Int64s, stops: Int64s, base_timestamp: int
) -> list[Part]:
    """The batches of consecutive runs of rows.

    Args:
        columns: keys, values or both, keys first; no nulls.
        starts: the first row of each batch.
        stops: behind its last row; where the next one starts.
        base_timestamp: ms; of every record.

    Returns:
        The batches, each in one buffer if they are small. The header's bytes can be written to;
        producer and header checksum are not in there yet (`header.stamp_producer`).

    Raises:
        InvalidTimestampError: a negative timestamp.
        RecordTooLargeError: a payload above `LENGTH_MAX`.
    """
    if base_timestamp < 0:
        raise InvalidTimestampError(
            f"timestamp {base_timestamp} ms is negative: times count from 1970-01-01T00:00Z"
        )
    counts = stops - starts
    flags = sum(column.flag for column in columns)
    edges = [_edges(column.lengths, starts, stops) for column in columns]
    sizes = [last - first for first, last in edges]
    metadata = metadata_words(flags, counts, sizes)
    lengths = metadata.shape[1] * _WORD + sum(
        _padded(4 * (counts + 1)) + _padded(size) for size in sizes
    )
    if int(lengths.max()) > LENGTH_MAX:
        raise RecordTooLargeError(
            f"a payload of {int(lengths.max())} bytes is above {LENGTH_MAX}: send fewer records "
            "at a time"
        )
    inline = int(lengths.sum()) <= INLINE_BYTES * len(counts)
    places, begins, ends = _places(counts, edges, metadata.shape[1] * _WORD, inline=inline)
    out = np.empty(int(ends[-1]), np.uint8)
    _put_words(out, begins + HEADER_BYTES, metadata)
    for column, place in zip(columns, places, strict=True):
        _put_offsets(out, column, place, starts, counts)
        if inline:
            _put_cells(out, column, place)
    parts: list[Part] = []
    if inline:
        parts += _slices(out.data, begins, ends)
        checksums = list(map(crc32c.crc32c, _slices(out.data, begins + HEADER_BYTES, ends)))
    else:
        pieces = _pieces(out.data, columns, places, begins)
        parts += map(Gathered, pieces)
        checksums = [_checksum(one) for one in pieces]
    headers = header_rows(flags, np.array(checksums), lengths, counts, base_timestamp)
    _put_words(out, begins, headers)
    return parts


def _padded(lengths: Int64s) -> Int64s:
    return lengths + -lengths % _WORD


def _edges(lengths: Int64s, starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s]:
    """Where the cells of each batch begin and end in the data of the column."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends[starts], ends[stops]


def _places(
    counts: Int64s, edges: list[tuple[Int64s, Int64s]], metadata_bytes: int, *, inline: bool
) -> tuple[list[_Place], Int64s, Int64s]:
    """Where everything lies, and where each batch begins and ends in the buffer of all."""
    within = np.full(len(counts), HEADER_BYTES + metadata_bytes, np.int64)
    found = []
    for first, last in edges:
        offsets = within
        cells = within = offsets + _padded(4 * (counts + 1))
        if inline:
            within = cells + _padded(last - first)
        found.append((offsets, cells, first, last - first))
    ends = np.cumsum(within)
    begins = ends - within
    places = [
        _Place(begins + offsets, begins + cells, first, length)
        for offsets, cells, first, length in found
    ]
    return places, begins, ends


def _put_words(out: npt.NDArray[np.uint8], begins: Int64s, rows: Int64s) -> None:
    """One row of eight-byte words at each place; everything is aligned to them."""
    out.view(np.int64)[(begins // _WORD)[:, None] + np.arange(rows.shape[1])] = rows


def _put_offsets(
    out: npt.NDArray[np.uint8], column: ShardColumn, place: _Place, starts: Int64s, counts: Int64s
) -> None:
    """Each batch's offsets: 0, and behind each of its rows where that ends."""
    cells = out.view(np.int32)
    first = place.offsets // 4
    cells[first + counts + 1 - counts % 2] = 0  # the last cell of all: padding, if it is any
    cells[first] = 0
    ends = np.cumsum(column.lengths)
    ends -= np.repeat(place.first, counts)
    rows = np.arange(len(ends))
    rows += np.repeat(first + 1 - starts, counts)
    cells[rows] = ends


def _put_cells(out: npt.NDArray[np.uint8], column: ShardColumn, place: _Place) -> None:
    ends = place.cells + _padded(place.length)
    filled = place.length > 0
    out.view(np.int64)[ends[filled] // _WORD - 1] = 0  # padding, as far as no cell lies there
    view, data = out.data, column.data
    for to, begin, length in zip(
        place.cells.tolist(), place.first.tolist(), place.length.tolist(), strict=True
    ):
        view[to : to + length] = data[begin : begin + length]


def _slices(out: memoryview, begins: Int64s, ends: Int64s) -> list[memoryview]:
    return [out[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _pieces(
    out: memoryview,
    columns: Sequence[ShardColumn],
    places: Sequence[_Place],
    begins: Int64s,
) -> list[list[Buffer]]:
    found: list[list[Buffer]] = [[] for _ in begins]
    before = begins
    for column, place in zip(columns, places, strict=True):
        rows = zip(
            found,
            *(part.tolist() for part in (before, place.cells, place.first, place.length)),
            strict=True,
        )
        for pieces, begin, end, first, length in rows:
            pieces.extend((out[begin:end], column.data[first : first + length]))
            if padding := -length % _WORD:
                pieces.append(_PADDING[padding])
        before = place.cells
    return found


def _checksum(pieces: list[Buffer]) -> int:
    checksum = crc32c.crc32c(memoryview(pieces[0])[HEADER_BYTES:])
    for piece in pieces[1:]:
        checksum = crc32c.crc32c(piece, checksum)
    return checksum
