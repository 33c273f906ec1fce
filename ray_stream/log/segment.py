"""One segment: its files' names, its open file, and finding a batch in it.

Owns: `.log` with its companions `.index` and `.snapshot`, and the rule that a hint is verified.
Refuses: which segments make up the log (`partition_log`), and what damage means (`recovery`).

Only a segment that is written to keeps a descriptor; a sealed one is opened for each use.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ray_stream.errors import CorruptBatchError, StorageError, StorageFullError
from ray_stream.log.append import Staged
from ray_stream.log.frames import EPOCH_ANY, Damage, Frame, Walk, walk
from ray_stream.log.index import IndexEntry, SegmentIndex
from ray_stream.log.storage import File, Storage
from ray_stream.records.header import FLAG_LOG_APPEND_TIME, HEADER_BYTES, BatchHeader
from ray_stream.types import NO_OFFSET, NO_TIMESTAMP

_NAME = re.compile(r"(\d{20})(?:\.([1-9]\d{0,8}))?\.(log|index|snapshot)\Z", re.ASCII)


class SegmentName(NamedTuple):
    """What a file's name says; a segment's generation counts how often it was replaced."""

    base_offset: int
    generation: int
    suffix: str

    @classmethod
    def parse(cls, name: str) -> "SegmentName | None":
        """None: not a file of a segment."""
        match = _NAME.match(name)
        return cls(int(match[1]), int(match[2] or 0), match[3]) if match else None

    def __str__(self) -> str:
        generation = f".{self.generation}" if self.generation else ""
        return f"{self.base_offset:020d}{generation}.{self.suffix}"


def time_of(header: BatchHeader) -> int:
    """The greatest time of a batch's records, ms."""
    if header.flags & FLAG_LOG_APPEND_TIME:
        return header.append_timestamp
    return header.max_timestamp


class Segment:
    """One run of batches in one file."""

    __slots__ = (
        "_directory",
        "_file",
        "_index_until",
        "_size",
        "_storage",
        "base_offset",
        "first_timestamp",
        "generation",
        "index",
        "max_timestamp",
        "sealed_at",
    )

    def __init__(
        self, storage: Storage, directory: str, base_offset: int, generation: int = 0
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._file: File | None = None
        self._size = -1
        self._index_until = -1
        self.base_offset = base_offset
        self.generation = generation
        self.sealed_at = NO_OFFSET
        """The base offset of the segment behind it; -1 while this one is written to."""
        self.first_timestamp = NO_TIMESTAMP
        """Append time of the first batch; -1 while unknown or empty."""
        self.max_timestamp = NO_TIMESTAMP
        """The greatest time of any batch; -1 while unknown or empty."""
        self.index = SegmentIndex(storage, self.path_of("index"), base_offset)

    def path_of(self, suffix: str) -> str:
        """The path of the segment's file of that kind."""
        return f"{self._directory}/{SegmentName(self.base_offset, self.generation, suffix)}"

    @property
    def path(self) -> str:
        """The `.log` file."""
        return self.path_of("log")

    def companions(self) -> tuple[str, ...]:
        """The files beside `path` that make it self-contained."""
        return self.path_of("index"), self.path_of("snapshot")

    @property
    def size(self) -> int:
        """Bytes of batches; what lies behind them in the file is no part of the segment."""
        if self._size < 0:
            with self.reading() as file:
                self._size = file.size()
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size

    @contextlib.contextmanager
    def reading(self) -> Iterator[File]:
        """The file, for reading."""
        if self._file is not None:
            yield self._file
            return
        try:
            file = self._storage.open_for_reading(self.path)
        except FileNotFoundError:
            raise StorageError(
                f"{self.path} is gone; it was there when the log was opened"
            ) from None
        try:
            yield file
        finally:
            file.close()

    def writing(self) -> File:
        """The file, for writing; stays open until `close`."""
        if self._file is None:
            try:
                self._file = self._storage.open(self.path)
            except FileNotFoundError:
                raise StorageError(f"{self.path} is gone, it cannot be written to") from None
        return self._file

    def create(self) -> None:
        """Make the file, empty; its name is durable after a sync of the directory."""
        self._file = self._storage.open(self.path, create=True)
        if self._file.size():
            self._file.truncate(0)
        self.index.clear()
        self._index_until = 0
        self._size = 0

    def close(self) -> None:
        """Give the descriptor back; the next write opens the file again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def unlink(self) -> None:
        """Remove the file and its companions."""
        self.close()
        for suffix in ("snapshot", "index", "log"):
            self._storage.unlink(self.path_of(suffix))

    def append(self, batches: Sequence[Staged], interval: int) -> None:
        """Write batches behind the last one, all of them or none.

        Args:
            batches: as they were stamped.
            interval: bytes between two index entries.

        Raises:
            StorageFullError, StorageError: as `File.write`; the segment is as before.
        """
        file = self._file or self.writing()
        if self._index_until < 0:
            self.resume(self.size, interval)
        position = self._size
        if self.index.flush_due:
            self._flush_if_room()
        file.write([piece for one in batches for piece in (one.encoded, one.payload)], position)
        if position == 0:
            self.first_timestamp = batches[0].header.append_timestamp
        for one in batches:
            header = one.header
            self._note(position, header, interval)
            position += HEADER_BYTES + header.length
        self._size = position

    def seal(self, next_offset: int, interval: int) -> None:
        """Close the index with an entry that says where the segment ends, and write it."""
        if self._index_until < 0:
            self.resume(self.size, interval)
        self.index.add(IndexEntry(next_offset, self.max_timestamp, self.size))
        self.sealed_at = next_offset
        self._flush_if_room()

    def resume(self, end: int, interval: int) -> None:
        """The segment ends at `end`, and is written to from there: bring the index in line."""
        self._size = end
        if end and self.max_timestamp == NO_TIMESTAMP:
            self._index_anew(interval)
            return
        try:
            self.index.cut(end)
            last = self.index.last()
        except CorruptBatchError:
            self._index_anew(interval)
            return
        self._index_until = last.position if last is not None else 0

    def replay(self, begin: Walk, interval: int) -> Iterator[Frame | Damage]:
        """Walk over batches that are not indexed yet, from `begin` to the end, indexing them."""
        self.resume(begin.position, interval)
        self._size = begin.end
        with self.reading() as file:
            for found in walk(file, begin):
                if isinstance(found, Frame):
                    if found.position == 0:
                        self.first_timestamp = found.header.append_timestamp
                    if self.index.flush_due:
                        self._flush_if_room()
                    self._note(found.position, found.header, interval)
                yield found

    def rebuild_index(self, interval: int) -> None:
        """Make the index again from the batches."""
        self._index_anew(interval)
        if self.sealed_at != NO_OFFSET:
            self.index.add(IndexEntry(self.sealed_at, self.max_timestamp, self.size))
        self._flush_if_room()

    def _index_anew(self, interval: int) -> None:
        self.index.clear()
        self.max_timestamp = NO_TIMESTAMP
        for _ in self.replay(self.whole(), interval):
            pass

    def _flush_if_room(self) -> None:
        """On a full disk the entries stay in memory: reads need them, and appends fail anyway."""
        with contextlib.suppress(StorageFullError):
            self.index.flush()

    def whole(self, *, payloads: bool = False, epoch_max: int = EPOCH_ANY) -> Walk:
        """A walk over the whole segment."""
        return self.from_here(0, self.base_offset, payloads=payloads, epoch_max=epoch_max)

    def from_here(
        self, position: int, offset: int, *, payloads: bool = False, epoch_max: int = EPOCH_ANY
    ) -> Walk:
        """A walk from a known place to the end."""
        return Walk(position, offset, self.size, payloads, self.generation > 0, epoch_max)

    def _note(self, position: int, header: BatchHeader, interval: int) -> None:
        """Take a batch into the index and the segment's times."""
        if position - self._index_until >= interval:
            self.index.add(IndexEntry(header.base_offset, self.max_timestamp, position))
            self._index_until = position
        time = time_of(header)
        self.max_timestamp = max(self.max_timestamp, time)

    def find(self, offset: int, interval: int) -> Frame | Damage | None:
        """The batch that holds `offset`, or the damage in its place; None: behind the end."""
        for hint in self._hints(lambda: self.index.find_offset(offset), interval):
            due = hint.offset
            with self.reading() as file:
                for found in walk(file, self.from_here(hint.position, hint.offset)):
                    if hint.disproved_by(found, offset, interval):
                        break
                    due = (
                        found.next_offset if isinstance(found, Damage) else found.header.next_offset
                    )
                    if offset < due or due == NO_OFFSET:
                        return found
                else:
                    return self._missing_end(due)
        raise AssertionError("a sure hint is never disproved")

    def _missing_end(self, due: int) -> Damage | None:
        if due >= self.sealed_at:
            return None
        reason = f"the segment ends at offset {due}, and the next one begins at {self.sealed_at}"
        return Damage(self.size, self.size, due, self.sealed_at, reason)

    def find_timestamp(self, timestamp: int, start: int, interval: int) -> Frame | Damage | None:
        """The first batch with a record at or after `timestamp`, if it ends behind offset `start`.

        Damage in front of that batch may have held such a record: then it is the answer.
        """
        for hint in self._hints(lambda: self.index.find_timestamp(timestamp), interval):
            damage: Damage | None = None
            with self.reading() as file:
                for found in walk(file, self.from_here(hint.position, hint.offset)):
                    if hint.disproved_by(found, NO_OFFSET, interval):
                        break
                    if isinstance(found, Damage):
                        damage = damage or found
                    elif time_of(found.header) >= timestamp and found.header.next_offset > start:
                        return damage or found
                    else:
                        damage = None
                else:
                    return None
        raise AssertionError("a sure hint is never disproved")

    def greatest_time(self, interval: int) -> int:
        """`max_timestamp`, looked up in the index of a sealed segment; -1: no batches."""
        if self.max_timestamp == NO_TIMESTAMP and self.sealed_at != NO_OFFSET:
            try:
                last = self.index.last()
            except CorruptBatchError:
                last = None
            if last is not None and (last.offset, last.position) == (self.sealed_at, self.size):
                self.max_timestamp = last.timestamp
            else:
                self.rebuild_index(interval)
        return self.max_timestamp

    def _hints(self, look_up: Callable[[], IndexEntry | None], interval: int) -> Iterator["_Hint"]:
        """What the index says; then, should that prove wrong, what it says after a rebuild."""
        with contextlib.suppress(CorruptBatchError):
            yield _Hint.of(look_up(), self.base_offset, sure=False)
        self.rebuild_index(interval)
        yield _Hint.of(look_up(), self.base_offset, sure=True)


class _Hint(NamedTuple):
    position: int
    offset: int
    sure: bool
    """The index was just made: what does not fit it is damage, not a wrong hint."""

    @classmethod
    def of(cls, entry: IndexEntry | None, base_offset: int, *, sure: bool) -> "_Hint":
        return cls(entry.position, entry.offset, sure) if entry else cls(0, base_offset, sure)

    def disproved_by(self, found: Frame | Damage, offset: int, interval: int) -> bool:
        """Whether the index led to no batch, or lacks an entry that would have led nearer."""
        if self.sure:
            return False
        if isinstance(found, Damage):
            return found.position == self.position > 0
        return found.header.next_offset <= offset and found.position >= self.position + interval
