"""Reading stored batches: both checksums, their order, and an exact name for damage.

Owns: finding and taking whole batches, and the quarantined ranges. Refuses: which offsets may be
read (`PartitionLog` bounds them), decoding records, skipping damage.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from ray_stream.errors import CorruptBatchError, CorruptRecordError, StorageError
from ray_stream.log.append import Staged
from ray_stream.log.buffers import read_view
from ray_stream.log.checkpoint import DamagedRange, merge_ranges
from ray_stream.log.frames import Damage, walk
from ray_stream.log.options import LogOptions
from ray_stream.log.segment import Segment, time_of
from ray_stream.log.storage import File
from ray_stream.records.batch import check_payload_checksum
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.types import NO_OFFSET

_LOOKS = 3
_PLACES_REMEMBERED = 16
_KEPT_BYTES_MAX = 64 * 1024
"""Of one log. More is read out of the file, by whoever wants it, at less cost."""


class ReadResult(NamedTuple):
    """Whole batches as they are stored, header and payload."""

    batches: tuple[memoryview, ...]
    """In order; the first one holds the offset asked for, others follow it."""
    next_offset: int
    """Where to read on."""
    extent: "Extent | None" = None
    """In place of batches where they are, when that was asked for."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where stored batches are, for a reader that sees the same file (STORAGE section 6).

    Attributes:
        path: of the file.
        position: where the first batch begins, which holds the offset asked for.
        length: bytes to read; the last batch in them may be cut off, the first one is whole.
        header: of the first batch: whoever finds other bytes there is in another file.
        end_offset: no batch that reaches behind it may be used.
    """

    path: str
    position: int
    length: int
    header: bytes
    end_offset: int


class _Kept(NamedTuple):
    """The batches of one write, all of them."""

    offset: int
    next_offset: int
    length: int
    batches: tuple[memoryview, ...]

    def holds(self, offset: int, end_offset: int, bytes_max: int) -> bool:
        """Whether a read from `offset` on returns just these."""
        is_readable = self.offset == offset and self.next_offset <= end_offset
        return is_readable and self.length <= bytes_max


@dataclass(slots=True)
class _Taken:
    """What a read has got so far, and where it stands."""

    batches: list[memoryview]
    offset: int
    position: int
    damage: Damage | None = None


class LogReader:
    """The reading side of one log."""

    __slots__ = ("_kept", "_options", "_places", "_segments", "damage_found", "quarantine")

    def __init__(
        self,
        options: LogOptions,
        segments: Sequence[Segment],
        quarantine: tuple[DamagedRange, ...],
    ) -> None:
        """Args: segments: the log's own list, which changes under the reader."""
        self._options = options
        self._segments = segments
        self._places: dict[int, tuple[Segment, int]] = {}
        self._kept: _Kept | None = None
        self.quarantine = quarantine
        self.damage_found = False
        """Whether a read has found damage since this was last cleared."""

    def read(
        self, offset: int, *, bytes_max: int, end_offset: int, log_end: int, in_place: bool = False
    ) -> ReadResult:
        """Batches from the one that holds `offset` on, out of one segment.

        Args:
            offset: inside of the log.
            bytes_max: about so many bytes; at least one batch.
            end_offset: no batch that reaches behind it.
            log_end: the written end, where the damage of an unreadable tail ends.
            in_place: tell where they are, unread, if the first one's header is sound.

        Raises:
            CorruptRecordError: the bytes at `offset` are damaged.
            StorageError: the system refused to read.
        """
        limit = self._sound_until(offset, end_offset)
        kept = self._kept
        if kept is not None and kept.holds(offset, limit, bytes_max):
            return ReadResult(kept.batches, kept.next_offset)
        number = bisect_right(self._segments, offset, key=lambda one: one.base_offset) - 1
        if number < 0:
            base = self._segments[0].base_offset
            self._raise_damaged(offset, DamagedRange(offset, base, "the first segment is missing"))
        segment = self._segments[number]
        taken = self._locate(segment, offset)
        if in_place and taken.damage is None:
            extent = _extent(segment, taken.position, bytes_max, limit)
            if extent is not None:
                if taken.offset == offset:  # else the batch begins in front of it
                    self.remember(offset, segment, taken.position)
                return ReadResult((), offset, extent)
        if taken.damage is None:
            _take(segment, taken, bytes_max, limit)
        if taken.batches:
            self.remember(taken.offset, segment, taken.position)
        elif taken.damage is not None:
            following = taken.damage.next_offset
            if following == NO_OFFSET:
                following = segment.sealed_at if segment.sealed_at != NO_OFFSET else log_end
            first, reason = taken.damage.first_offset, taken.damage.reason
            self._raise_damaged(offset, DamagedRange(first, following, reason))
        return ReadResult(tuple(taken.batches), max(taken.offset, offset))

    def find_timestamp(self, timestamp: int, start: int) -> tuple[int, int] | None:
        """As `PartitionLog.offset_for_timestamp`, over everything that was written."""
        interval = self._options.index_interval_bytes
        for segment in self._segments:
            if segment.greatest_time(interval) < timestamp:
                continue
            found = segment.find_timestamp(timestamp, start, interval)
            if isinstance(found, Damage):
                return max(found.first_offset, start), timestamp
            if found is not None:
                return max(found.header.base_offset, start), time_of(found.header)
        return None

    def remember(self, offset: int, segment: Segment, position: int) -> None:
        """A batch begins there, or will: for the reader that comes for it next."""
        places = self._places
        if places.pop(offset, None) is None and len(places) >= _PLACES_REMEMBERED:
            del places[next(iter(places))]
        places[offset] = (segment, position)

    def keep(self, written: Sequence[Staged]) -> None:
        """Keep what was just written for readers that wait for it, if it is short.

        They get the bytes that were checked on their way in, and the file is not asked for them.
        """
        length = sum(one.header.batch_bytes for one in written)
        if length > _KEPT_BYTES_MAX:
            return
        view = memoryview(b"".join([part for one in written for part in one[2:]]))
        batches: list[memoryview] = []
        at = 0
        for one in written:
            batches.append(view[at : at + one.header.batch_bytes])
            at += one.header.batch_bytes
        offset, next_offset = written[0].header.base_offset, written[-1].header.next_offset
        self._kept = _Kept(offset, next_offset, length, tuple(batches))

    def forget_kept(self) -> None:
        """Whoever waited has it, or something else has become of it."""
        self._kept = None

    def truncated(self, end_offset: int) -> None:
        """Everything from `end_offset` on was cut off."""
        self._places.clear()
        self._kept = None
        self.quarantine = tuple(
            one._replace(next_offset=min(one.next_offset, end_offset))
            for one in self.quarantine
            if one.first_offset < end_offset
        )

    def set_options(self, options: LogOptions) -> None:
        """Take new settings."""
        self._options = options

    def _sound_until(self, offset: int, end_offset: int) -> int:
        """Where the next quarantined range begins; raises inside of one."""
        for damaged in self.quarantine:
            if damaged.next_offset <= offset:
                continue
            if damaged.first_offset <= offset:
                raise CorruptRecordError(self._options.topic, self._options.partition, *damaged)
            return min(end_offset, damaged.first_offset)
        return end_offset

    def _locate(self, segment: Segment, offset: int) -> _Taken:
        """Where the batch is that holds `offset`."""
        known = self._places.get(offset)
        if known is not None and known[0] is segment and known[1] < segment.size:
            return _Taken([], offset, known[1])
        found = segment.find(offset, self._options.index_interval_bytes)
        if found is None:
            reason = f"the segment ends in front of offset {offset}"
            found = Damage(segment.size, segment.size, offset, NO_OFFSET, reason)
        if isinstance(found, Damage):
            return _Taken([], offset, found.position, found)
        return _Taken([], found.header.base_offset, found.position)

    def _raise_damaged(self, offset: int, damaged: DamagedRange) -> NoReturn:
        """Quarantine a range that a read has found; the next checkpoint records it."""
        assert damaged.first_offset <= offset < damaged.next_offset, "damage is where it was found"
        self.quarantine = merge_ranges((*self.quarantine, damaged))
        self.damage_found = True
        self._sound_until(offset, offset)
        raise AssertionError("the offset is quarantined")


def _extent(segment: Segment, position: int, bytes_max: int, end_offset: int) -> Extent | None:
    """Where to read from `position` on; None when what is there has to be looked at here."""
    with segment.reading() as file:
        raw = file.read(HEADER_BYTES, position)
    try:
        header = decode_header(raw)
    except CorruptBatchError:
        return None
    if header.next_offset > end_offset:
        return None
    length = min(max(bytes_max, header.batch_bytes), segment.size - position)
    return Extent(segment.path, position, length, raw, end_offset)


def _take(segment: Segment, begin: _Taken, bytes_max: int, end_offset: int) -> None:
    """Add batches to `begin` from its position on, and move it behind them.

    Stops in front of `end_offset`, at about `bytes_max` bytes (the first batch may be larger), at
    the end of the segment, and in front of damage, which is then named in `begin.damage`.
    """
    with segment.reading() as file:
        for _ in range(_LOOKS):
            if not _take_chunk(file, segment, begin, bytes_max, end_offset):
                return
            found = next(walk(file, segment.from_here(begin.position, begin.offset, payloads=True)))
            if isinstance(found, Damage):
                begin.damage = found
                return
            # Good at the second look: something between the disk and us was wrong, not the bytes.
    raise StorageError(f"{segment.path} reads differently each time: its device is failing")


def _take_chunk(
    file: File, segment: Segment, taken: _Taken, bytes_max: int, end_offset: int
) -> bool:
    """Take what one read of the file holds; whether it stopped at something wrong."""
    left = segment.size - taken.position
    wanted = min(max(bytes_max, HEADER_BYTES), left)
    view = read_view(file, wanted, taken.position)
    if len(view) < wanted:
        return True
    at = 0
    while at + HEADER_BYTES <= len(view) and taken.offset < end_offset:
        try:
            header = decode_header(view, at)
            if header.base_offset != taken.offset and not segment.generation:
                return True
            end = at + header.batch_bytes
            if header.next_offset > end_offset:
                return False
            if end > len(view):
                if taken.batches or end > left:
                    return end > left
                view = read_view(file, end, taken.position)
            check_payload_checksum(header, view[at + HEADER_BYTES : end])
        except CorruptBatchError:
            return True
        taken.batches.append(view[at:end])
        taken.offset = header.next_offset
        taken.position += header.batch_bytes
        at = end
    return at < left <= len(view) and taken.offset < end_offset
