"""Walking the batches of one segment file: what is good, what is damaged, and what comes behind it.

Owns: when a frame is believed, and how the next good one behind a bad one is found. The reader,
recovery and `verify` all walk with this, so they name the same ranges. Refuses: deciding what
becomes of damage, and any state of the log.

A frame is believed when its header's checksum matches, it lies inside the file, its base offset is
the one that is due and its leader epoch is not in the wrong order; with payloads asked for, also
the payload's checksum. Behind a bad header the walk looks first where that header says that the
next one is (most damage spares the length), then for the next magic number whose header is
believable. A producer may put the bytes of a header into a payload, so this search is only for
headers that cannot be read; what it finds must fit the offsets and epochs around it.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ray_stream.errors import CorruptBatchError
from ray_stream.log.storage import File
from ray_stream.records.batch import check_payload_checksum
from ray_stream.records.header import HEADER_BYTES, LENGTH_MAX, MAGIC, BatchHeader, decode_header

_MAGIC_BYTES = struct.pack("<I", MAGIC)
_LENGTH = struct.Struct("<I")
_LENGTH_POSITION = 20
_HEADERS_WINDOW = 16 * 1024
_PAYLOADS_WINDOW = 512 * 1024
EPOCH_ANY = 2**31 - 1


class Frame(NamedTuple):
    """A batch that is believed."""

    position: int
    header: BatchHeader

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + self.header.batch_bytes


class Damage(NamedTuple):
    """Bytes that are no batch, or not the batch that they were."""

    position: int
    end: int
    """Where the next believed header is, or the end of what was walked."""
    first_offset: int
    next_offset: int
    """The base offset of the next believed header; -1 when there is none in this file."""
    reason: str
    header: BatchHeader | None = None
    """The header, where only the payload is damaged."""


class Walk(NamedTuple):
    """Where a walk begins, and what it believes."""

    position: int
    offset: int
    """The base offset that is due at `position`."""
    end: int
    """Bytes from here on are not looked at."""
    payloads: bool
    """Whether payloads are checked too."""
    gaps: bool = False
    """Whether offsets may be missing between batches (a compacted segment)."""
    epoch_max: int = EPOCH_ANY
    """No batch has a leader epoch above this."""


def walk(file: File, begin: Walk) -> Iterator[Frame | Damage]:
    """Every frame and every damage from `begin` on, in order, without holes between them."""
    window = _Window(file, begin.end, _PAYLOADS_WINDOW if begin.payloads else _HEADERS_WINDOW)
    position, offset, epoch = begin.position, begin.offset, -1
    while position < begin.end:
        found = _frame(window, begin, position, offset, epoch)
        yield found
        if isinstance(found, Frame):
            epoch = found.header.leader_epoch
            offset = found.header.next_offset
            position = found.end
        else:
            position = found.end
            offset = found.next_offset


def _frame(
    window: "_Window", rules: Walk, position: int, offset: int, epoch: int
) -> Frame | Damage:
    try:
        header = decode_header(window.view(position, HEADER_BYTES))
        _check_place(header, rules, position, offset, epoch)
    except CorruptBatchError as error:
        return _next_believed(window, rules, position, offset, epoch, str(error))
    if not rules.payloads:
        return Frame(position, header)
    try:
        check_payload_checksum(header, window.view(position + HEADER_BYTES, header.length))
    except CorruptBatchError as error:
        end = position + header.batch_bytes
        return Damage(position, end, header.base_offset, header.next_offset, str(error), header)
    return Frame(position, header)


def _check_place(header: BatchHeader, rules: Walk, position: int, offset: int, epoch: int) -> None:
    if position + header.batch_bytes > rules.end:
        raise CorruptBatchError(
            f"the batch has {header.batch_bytes} bytes, {rules.end - position} are left"
        )
    if header.base_offset != offset and not (rules.gaps and header.base_offset > offset):
        raise CorruptBatchError(f"base offset {header.base_offset} where {offset} was due")
    if not epoch <= header.leader_epoch <= rules.epoch_max:
        raise CorruptBatchError(
            f"leader epoch {header.leader_epoch}, {max(epoch, 0)} to {rules.epoch_max} was due"
        )
    if header.durable_offset > header.base_offset:
        raise CorruptBatchError(
            f"durable offset {header.durable_offset} above the base offset {header.base_offset}"
        )


def _next_believed(
    window: "_Window", rules: Walk, position: int, offset: int, epoch: int, reason: str
) -> Damage:
    """The damage from `position` up to the next header that fits behind it."""

    def believed(candidate: int) -> BatchHeader | None:
        try:
            header = decode_header(window.view(candidate, HEADER_BYTES))
            _check_place(header, rules._replace(gaps=True), candidate, offset + 1, epoch)
        except CorruptBatchError:
            return None
        return header

    raw = window.view(position, HEADER_BYTES)
    if len(raw) == HEADER_BYTES:
        claimed = _LENGTH.unpack_from(raw, _LENGTH_POSITION)[0]
        after = position + HEADER_BYTES + claimed
        if claimed <= LENGTH_MAX and (header := believed(after)) is not None:
            return Damage(position, after, offset, header.base_offset, reason)
    candidate = position
    while (candidate := window.find(_MAGIC_BYTES, candidate + 1)) >= 0:
        if (header := believed(candidate)) is not None:
            return Damage(position, candidate, offset, header.base_offset, reason)
    return Damage(position, rules.end, offset, -1, reason)


class _Window:
    """A part of a file in memory, moved forward as it is asked for."""

    __slots__ = ("_bytes", "_data", "_end", "_file", "_start")

    def __init__(self, file: File, end: int, window_bytes: int) -> None:
        self._file = file
        self._end = end
        self._bytes = window_bytes
        self._start = 0
        self._data = b""

    def view(self, position: int, length: int) -> memoryview:
        """The bytes at `position`; fewer at the end, none behind it."""
        length = min(length, self._end - position)
        if length <= 0:
            return memoryview(b"")
        begin = position - self._start
        if begin < 0 or begin + length > len(self._data):
            self._data = self._file.read(
                min(max(length, self._bytes), self._end - position), position
            )
            self._start = position
            begin = 0
        return memoryview(self._data)[begin : begin + length]

    def find(self, wanted: bytes, position: int) -> int:
        """Where `wanted` is next, from `position` on; -1 when it is not."""
        while position + len(wanted) <= self._end:
            begin = position - self._start
            if begin < 0 or begin + len(wanted) > len(self._data):
                self.view(position, len(wanted))
                begin = position - self._start
                if begin + len(wanted) > len(self._data):
                    return -1
            found = self._data.find(wanted, begin)
            if found >= 0:
                return self._start + found
            position = self._start + len(self._data) - len(wanted) + 1
        return -1
