"""The sparse index of one segment: where to begin to look for an offset or a time. A hint.

Owns: the `.index` file, its entries and their checksums. Refuses: being believed. Every look-up is
verified against the record that it leads to (`log.segment`); an index that is damaged, missing or
short is made again from the segment.

An entry says: at `position` a batch with `offset` begins, and no batch in front of it in this
segment is later than `timestamp`. Entries are 24 bytes, each with its own CRC32C, seeded with the
segment's base offset so that a file at the wrong place is noticed. A look-up is a binary search by
position in the file: an idle index costs no memory, and a busy one only its unwritten entries.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import crc32c

from ray_stream.errors import CorruptBatchError
from ray_stream.log.storage import File, Storage

_ENTRY = struct.Struct("<qqI")
_CRC = struct.Struct("<I")
_SEED = struct.Struct("<q")
ENTRY_BYTES = _ENTRY.size + _CRC.size
ENTRIES_UNWRITTEN_MAX = 256


class IndexEntry(NamedTuple):
    """Where one batch begins."""

    offset: int
    timestamp: int
    """The greatest time of all batches of the segment in front of `position`."""
    position: int


class SegmentIndex:
    """One `.index` file and the entries that are not written to it yet."""

    __slots__ = ("_count", "_seed", "_storage", "_unwritten", "path")

    def __init__(self, storage: Storage, path: str, base_offset: int) -> None:
        self.path = path
        self._storage = storage
        self._seed = crc32c.crc32c(_SEED.pack(base_offset))
        self._count = -1
        self._unwritten: list[IndexEntry] = []

    @property
    def flush_due(self) -> bool:
        """Whether so many entries are unwritten that `flush` should be called."""
        return len(self._unwritten) >= ENTRIES_UNWRITTEN_MAX

    def add(self, entry: IndexEntry) -> None:
        """Add an entry behind all others; it reaches the file with the next `flush`."""
        self._unwritten.append(entry)

    def flush(self) -> None:
        """Write what is unwritten. Not synced: the file is a hint."""
        if not self._unwritten:
            return
        file = self._storage.open(self.path, create=True)
        try:
            count = self._written(file)
            file.write([b"".join(map(self._encode, self._unwritten))], count * ENTRY_BYTES)
            self._count = count + len(self._unwritten)
            self._unwritten.clear()
        finally:
            file.close()

    def find_offset(self, offset: int) -> IndexEntry | None:
        """The last entry at or below `offset`; None when the segment's beginning is.

        Raises:
            CorruptBatchError: the index is damaged; make it again.
        """
        return self._find(0, offset)

    def find_position(self, position: int) -> IndexEntry | None:
        """The last entry at or below `position`; errors as `find_offset`."""
        return self._find(2, position)

    def find_timestamp(self, timestamp: int) -> IndexEntry | None:
        """The last entry with nothing at or behind `timestamp` in front of it.

        None: only the segment's beginning is sure. Errors as `find_offset`.
        """
        return self._find(1, timestamp - 1)

    def last(self) -> IndexEntry | None:
        """The last entry; errors as `find_offset`."""
        if self._unwritten:
            return self._unwritten[-1]
        file = self._open()
        if file is None:
            return None
        try:
            count = self._written(file)
            return self._entry(file, count - 1) if count else None
        finally:
            file.close()

    def entries(self) -> Iterator[IndexEntry | None]:
        """Every entry in the file, None for a damaged one; for offline checks."""
        file = self._open()
        if file is None:
            return
        try:
            data = file.read(file.size(), 0)
        finally:
            file.close()
        for start in range(0, len(data), ENTRY_BYTES):
            try:
                yield self._decode(data[start : start + ENTRY_BYTES])
            except CorruptBatchError:
                yield None

    def cut(self, position: int) -> None:
        """Forget the entries at or behind `position`; errors as `find_offset`."""
        if self._unwritten:
            self._unwritten = [one for one in self._unwritten if one.position < position]
        if not self._storage.exists(self.path):
            self._count = 0
            return
        file = self._storage.open(self.path)
        try:
            self._count = -1
            count = self._search(file, self._written(file), 2, position - 1)
            file.truncate(count * ENTRY_BYTES)
            self._count = count
        finally:
            file.close()

    def clear(self) -> None:
        """Forget everything, to be made again."""
        self._unwritten.clear()
        self._count = 0
        if self._storage.exists(self.path):
            file = self._storage.open(self.path)
            try:
                file.truncate(0)
            finally:
                file.close()

    def _find(self, key: int, value: int) -> IndexEntry | None:
        if self._unwritten and self._unwritten[0][key] <= value:
            keys = [entry[key] for entry in self._unwritten]
            return self._unwritten[bisect_right(keys, value) - 1]
        file = self._open()
        if file is None:
            return None
        try:
            found = self._search(file, self._written(file), key, value)
            return self._entry(file, found - 1) if found else None
        finally:
            file.close()

    def _search(self, file: File, count: int, key: int, value: int) -> int:
        """How many entries are at or below `value`."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if self._entry(file, middle)[key] <= value:
                low = middle + 1
            else:
                high = middle
        return low

    def _open(self) -> File | None:
        try:
            return self._storage.open_for_reading(self.path)
        except FileNotFoundError:
            return None

    def _written(self, file: File) -> int:
        """Entries in the file; a torn one behind them does not count and is overwritten."""
        if self._count < 0:
            self._count = file.size() // ENTRY_BYTES
        return self._count

    def _entry(self, file: File, number: int) -> IndexEntry:
        return self._decode(file.read(ENTRY_BYTES, number * ENTRY_BYTES))

    def _encode(self, entry: IndexEntry) -> bytes:
        raw = _ENTRY.pack(*entry)
        return raw + _CRC.pack(crc32c.crc32c(raw, self._seed))

    def _decode(self, raw: bytes) -> IndexEntry:
        fields = raw[: _ENTRY.size]
        if len(raw) != ENTRY_BYTES or raw[_ENTRY.size :] != _CRC.pack(
            crc32c.crc32c(fields, self._seed)
        ):
            raise CorruptBatchError(f"an entry of {self.path} is damaged")
        return IndexEntry(*_ENTRY.unpack(fields))
