"""The Arrow IPC message of a payload: its one layout, written and checked without Arrow.

Owns: the metadata in front of the column buffers, and the proof that a message describes exactly
the bytes behind it. Refuses: the values in the columns (`reader`), compression, schemas.

A message is valid Arrow IPC (any Arrow implementation reads it, given the schema), but of all the
ways to lay out its flatbuffer we write one, and accept no other. So nothing of a hostile message is
followed: its numbers are read from fixed places, the message that they describe is encoded anew,
and the two must be equal byte for byte. Arrow's buffer compression, dictionaries, overlapping
buffers or lengths beyond the payload cannot be said in that layout.

The layout follows Arrow's `Message.fbs` and "Encapsulated message format", metadata version 5.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_stream.errors import CorruptBatchError
from ray_stream.records.header import (
    COLUMN_FLAGS,
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    Buffer,
)

ALIGNMENT = 8

_CONTINUATION = 0xFFFFFFFF
_PREFIX_BYTES = 8
_METADATA_V5 = 4
_RECORD_BATCH = 3
_BODY_WORD, _ROWS_WORD, _NODES_WORD = 4, 8, 10
"""Where the length of the body, the rows and the nodes stand, in words of eight bytes."""
_OFFSET = struct.Struct("<i")
_PLAIN_PIECES = ((0, 32), (40, 64), (72, 80))
"""Bytes of metadata that all messages of a form share: around the body's length and the rows."""
PLAIN_COLUMNS = (FLAG_KEY, FLAG_VALUE, FLAG_KEY | FLAG_VALUE)
"""The columns of plain messages, which have no nulls either."""
_EDGES = struct.Struct("<ii")
FIXED_WIDTH = {FLAG_TIMESTAMP: 8, FLAG_OFFSET_DELTA: 4}
_COLUMN_ORDER = (FLAG_KEY, FLAG_VALUE, FLAG_TIMESTAMP, FLAG_HEADERS, FLAG_OFFSET_DELTA)
_SIZES = {  # (nodes, buffers) of a column: binary, binary, int64, map<string, binary>, int32
    FLAG_KEY: (1, 3),
    FLAG_VALUE: (1, 3),
    FLAG_TIMESTAMP: (1, 2),
    FLAG_HEADERS: (4, 9),
    FLAG_OFFSET_DELTA: (1, 2),
}


Int64s = npt.NDArray[np.int64]


class Shape:
    """What varies from message to message: two numbers for a node, one for a buffer."""

    __slots__ = ("bitmaps", "buffers", "ends", "nodes")

    def __init__(self) -> None:
        self.nodes: list[int] = []
        """Length and null count of each node, depth first."""
        self.buffers: list[int] = []
        """Bytes of each buffer, padding left out."""
        self.ends: list[tuple[int, int]] = []
        """Buffers of offsets, and what each one ends with."""
        self.bitmaps: list[tuple[int, int, int]] = []
        """Validity bitmaps: buffer, rows, nulls."""

    def add_binary(self, count: int, nulls: int, data_bytes: int) -> None:
        """A column `key` or `value`: validity (only if there are nulls), offsets, data."""
        first = len(self.buffers)
        if nulls:
            self.bitmaps.append((first, count, nulls))
        self.ends.append((first + 1, data_bytes))
        self.nodes += (count, nulls)
        self.buffers += (bitmap_bytes(count) if nulls else 0, 4 * (count + 1), data_bytes)

    def add_fixed(self, count: int, width: int) -> None:
        """A column of integers, without nulls."""
        self.nodes += (count, 0)
        self.buffers += (0, count * width)

    def add_headers(
        self, count: int, entries: int, nulls: int, key_bytes: int, value_bytes: int
    ) -> None:
        """The column `headers`: never null itself, its keys neither, its values perhaps."""
        self.ends.append((len(self.buffers) + 1, entries))
        self.nodes += (count, 0, entries, 0)
        self.buffers += (0, 4 * (count + 1), 0)
        self.add_binary(entries, 0, key_bytes)
        self.add_binary(entries, nulls, value_bytes)


class _Form(NamedTuple):
    """The metadata of one combination of columns."""

    layout: struct.Struct
    columns: tuple[int, ...]
    nodes: int
    buffers: int


class _PlainForm(NamedTuple):
    """The metadata of plain messages: what varies, between pieces that do not."""

    layout: struct.Struct
    columns: int
    begin: bytes
    middle: bytes
    nodes: bytes
    buffers: bytes


def padded(length: int) -> int:
    """`length` rounded up to where the next buffer begins."""
    return -length % ALIGNMENT + length


def bitmap_bytes(count: int) -> int:
    """Bytes of a validity bitmap of `count` bits."""
    return (count + 7) // 8


def columns_of(flags: int) -> tuple[int, ...]:
    """The columns in the order of the payload, each as its flag."""
    return _form(flags & COLUMN_FLAGS).columns


@lru_cache(maxsize=64)
def _form(column_flags: int) -> _Form:
    columns = tuple(flag for flag in _COLUMN_ORDER if column_flags & flag)
    nodes = sum(_SIZES[flag][0] for flag in columns)
    buffers = sum(_SIZES[flag][1] for flag in columns)
    layout = struct.Struct(
        "<Ii"  # continuation, bytes of metadata
        "I6HihBBqI"  # root offset, vtable and table of Message
        "5HHiIqI"  # vtable and table of RecordBatch
        f"I{2 * nodes}qII{2 * buffers}q"  # the vectors of nodes and of buffers
    )
    return _Form(layout, columns, nodes, buffers)


def encode_metadata(flags: int, record_count: int, shape: Shape) -> bytes:
    """The bytes in front of the body: prefix and metadata."""
    form = _form(flags & COLUMN_FLAGS)
    places: list[int] = []
    position = 0
    for length in shape.buffers:
        places += (position, length)
        position += padded(length)
    return form.layout.pack(
        *(_CONTINUATION, form.layout.size - _PREFIX_BYTES),
        *(16, 12, 20, 4, 6, 16, 8, 12, _METADATA_V5, _RECORD_BATCH, 0, position, 16),
        *(10, 20, 8, 4, 16, 0, 12, 16, record_count, 12 + 16 * form.nodes),
        *(form.nodes, *shape.nodes, 0, form.buffers, *places),
    )


def metadata_words(flags: int, counts: Int64s, data_bytes: Sequence[Int64s]) -> Int64s:
    """As `encode_metadata`, for many messages of `key` and `value` without nulls.

    Args:
        flags: which columns, as everywhere.
        counts: rows of each message.
        data_bytes: for each column, the bytes of its cells in each message.

    Returns:
        A row of eight-byte words for each message; every number that varies is one of them.
    """
    form = _form(flags & COLUMN_FLAGS)
    shape = Shape()
    for _ in data_bytes:
        shape.add_binary(0, 0, 0)
    template = np.frombuffer(encode_metadata(flags, 0, shape), np.int64)
    words = np.tile(template, (len(counts), 1))
    words[:, _ROWS_WORD] = counts
    position: Int64s = np.zeros_like(counts)
    place = _NODES_WORD + 2 * form.nodes + 1
    for column, size in enumerate(data_bytes):
        words[:, _NODES_WORD + 2 * column] = counts
        for length in (np.zeros_like(counts), 4 * (counts + 1), size):
            words[:, place] = position
            words[:, place + 1] = length
            position = position + length + -length % ALIGNMENT
            place += 2
    words[:, _BODY_WORD] = position
    return words


def check_message(payload: Buffer, flags: int, record_count: int) -> None:
    """Check that `payload` is one record batch of these columns and rows, and nothing else.

    Nothing is allocated by a length in it. Of the values only those are looked at that must agree
    with the metadata: first and last offsets, and the number of nulls. What lies between, and the
    values themselves, is the reader's to check.

    Raises:
        CorruptBatchError: anything differs from the one layout.
    """
    is_narrow = flags & COLUMN_FLAGS and not flags & COLUMN_FLAGS & ~(FLAG_KEY | FLAG_VALUE)
    if record_count == 1 and is_narrow and single_cells(payload, flags) is not None:
        return
    form = _form(flags & COLUMN_FLAGS)
    if not form.columns:
        raise CorruptBatchError("the header names no column, yet there is a payload")
    metadata_bytes = form.layout.size
    if len(payload) < metadata_bytes:
        raise CorruptBatchError(
            f"{len(payload)} bytes are too few for the Arrow metadata of these columns"
        )
    view = memoryview(payload)
    metadata = bytes(view[:metadata_bytes])
    shape = _proven_shape(metadata, flags & COLUMN_FLAGS, record_count, len(payload))
    _check_edges(view[metadata_bytes:], shape)


@lru_cache(maxsize=64)
def _proven_shape(metadata: bytes, flags: int, record_count: int, payload_bytes: int) -> Shape:
    """The shape that this metadata describes; batches that are alike are proven once."""
    form = _form(flags)
    fields = form.layout.unpack(metadata)
    behind_nodes = len(fields) - 2 * form.buffers - 2
    shape = _claimed_shape(
        form.columns,
        record_count,
        fields[behind_nodes - 2 * form.nodes : behind_nodes],
        fields[1 - 2 * form.buffers :: 2],
        payload_bytes,
    )
    body_bytes = sum(map(padded, shape.buffers))
    if body_bytes != payload_bytes - len(metadata):
        raise CorruptBatchError(
            f"the columns need {body_bytes} bytes, the payload has {payload_bytes - len(metadata)}"
        )
    if encode_metadata(flags, record_count, shape) != metadata:
        raise CorruptBatchError("the Arrow metadata differs from the one layout of this format")
    return shape


@lru_cache(maxsize=8)
def _plain_form(column_flags: int) -> _PlainForm:
    form = _form(column_flags)
    shape = Shape()
    for _ in form.columns:
        shape.add_binary(0, 0, 0)
    sample = encode_metadata(column_flags, 0, shape)
    behind_nodes = _PLAIN_PIECES[-1][1] + 16 * form.nodes
    layout = struct.Struct(f"<32sq24sq8s{2 * form.nodes}q8s{2 * form.buffers}q")
    assert layout.size == form.layout.size, "the pieces and what is between them are all"
    pieces = [sample[begin:end] for begin, end in _PLAIN_PIECES]
    pieces.append(sample[behind_nodes : behind_nodes + 8])
    return _PlainForm(layout, len(form.columns), *pieces)


def is_plain_message(view: memoryview, start: int, column_flags: int, record_count: int) -> bool:
    """Whether a plain message fills `view` from `start` on, proven as by `check_message`.

    The lengths are taken from where the columns' offsets end, so that all of the metadata is
    compared with what it has to be. False: `check_message` will tell.

    Args:
        view: a batch, or more in front of the message.
        start: where the message begins.
        column_flags: one of `PLAIN_COLUMNS`.
        record_count: what the header says, above 0.
    """
    form = _plain_form(column_flags)
    body = position = start + form.layout.size
    end = len(view)
    offset_bytes = 4 * record_count + 4
    data_behind = offset_bytes + 7 & -ALIGNMENT
    places: list[int] = []
    for _ in range(form.columns):
        data = position + data_behind
        if data > end:
            return False
        (length,) = _OFFSET.unpack_from(view, position + 4 * record_count)
        if _OFFSET.unpack_from(view, position) != (0,) or not 0 <= length <= end - data:
            return False
        at = position - body
        places += (at, 0, at, offset_bytes, at + data_behind, length)
        position = data + (length + 7 & -ALIGNMENT)
    if position != end:
        return False
    expected = form.layout.pack(
        *(form.begin, position - body, form.middle, record_count, form.nodes),
        *((record_count, 0) * form.columns),
        *(form.buffers, *places),
    )
    return bytes(view[start:body]) == expected


@lru_cache(maxsize=1024)
def single_metadata(flags: int, lengths: tuple[int, ...]) -> bytes:
    """What stands in front of one row of `key` and `value` without nulls.

    Args:
        flags: which of the two.
        lengths: bytes of each.
    """
    shape = Shape()
    for length in lengths:
        shape.add_binary(1, 0, length)
    return encode_metadata(flags, 1, shape)


def single_cells(payload: Buffer, flags: int) -> list[memoryview] | None:
    """The cells of a message of one row of `key` and `value`, proven as by `check_message`.

    None: it is no such message, or one with a null, which `check_message` will tell.
    """
    form = _form(flags & COLUMN_FLAGS)
    view = memoryview(payload)
    cells: list[memoryview] = []
    position = form.layout.size
    for _ in form.columns:
        if position + _EDGES.size > len(view):
            return None
        first, length = _EDGES.unpack_from(view, position)
        position += _EDGES.size
        if first or not 0 <= length <= len(view) - position:
            return None
        cells.append(view[position : position + length])
        position += padded(length)
    if position != len(view):
        return None
    expected = single_metadata(flags & COLUMN_FLAGS, tuple(map(len, cells)))
    return cells if view[: form.layout.size] == expected else None


def _check_edges(body: memoryview, shape: Shape) -> None:
    """Offsets begin at 0 and end where their data ends; bitmaps have as many nulls as was said."""
    positions = [0, *accumulate(map(padded, shape.buffers))]
    for buffer, end in shape.ends:
        last = positions[buffer] + shape.buffers[buffer] - _OFFSET.size
        edges = _OFFSET.unpack_from(body, positions[buffer]) + _OFFSET.unpack_from(body, last)
        if edges != (0, end):
            raise CorruptBatchError(f"offsets run from {edges[0]} to {edges[1]}, not 0 to {end}")
    for buffer, count, nulls in shape.bitmaps:
        start = positions[buffer]
        bits = int.from_bytes(body[start : start + shape.buffers[buffer]], "little")
        if bits.bit_length() > count or count - bits.bit_count() != nulls:
            raise CorruptBatchError(f"a column does not have the {nulls} nulls of its metadata")


def _claimed_shape(
    columns: Sequence[int],
    record_count: int,
    nodes: Sequence[int],
    lengths: Sequence[int],
    limit: int,
) -> Shape:
    """The shape that the message must have; only what may vary is taken from its numbers."""
    if min(*nodes, *lengths) < 0 or max(*nodes, *lengths) > limit:
        raise CorruptBatchError(f"a count or length in the Arrow metadata is not in [0, {limit}]")
    shape = Shape()
    for flag in columns:
        node, buffer = len(shape.nodes), len(shape.buffers)
        if flag == FLAG_HEADERS:
            entries, nulls = nodes[node + 2], nodes[node + 7]
            shape.add_headers(
                record_count, entries, nulls, lengths[buffer + 5], lengths[buffer + 8]
            )
        elif flag in FIXED_WIDTH:
            shape.add_fixed(record_count, FIXED_WIDTH[flag])
        else:
            shape.add_binary(record_count, nodes[node + 1], lengths[buffer + 2])
    return shape
