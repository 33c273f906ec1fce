"""Looking at everything behind the checkpoint: what is believed, what is damaged, what was durable.

Owns: one pass over the tail of a log. Refuses: changing anything (`recovery` does).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from ray_stream.errors import CorruptMetadataError
from ray_stream.log.checkpoint import Checkpoint, DamagedRange, Place
from ray_stream.log.frames import Damage, Frame, walk
from ray_stream.log.segment import Segment
from ray_stream.types import NO_OFFSET


class DamageAt(NamedTuple):
    """A damage and the segment it is in."""

    segment: Segment
    damage: Damage


@dataclass(slots=True)
class Scan:
    """What a pass saw."""

    end: Place
    """Behind the last believed batch."""
    witnessed: int
    """Every offset below was durable once: a believable header or the checkpoint says so."""
    damages: list[DamageAt] = field(default_factory=list)
    lost: DamagedRange | None = None
    """Durable offsets whose whole file is missing."""
    bytes_scanned: int = 0

    @property
    def cut(self) -> DamageAt | None:
        """Where the torn tail begins: the first damage that was never durable."""
        return next((one for one in self.damages if self._torn(one)), None)

    @property
    def corrupt(self) -> list[DamageAt]:
        """The damages in front of the cut: bytes that were durable once."""
        number = next((n for n, one in enumerate(self.damages) if self._torn(one)), None)
        return self.damages[:number]

    def _torn(self, one: DamageAt) -> bool:
        return one.damage.first_offset >= self.witnessed

    def ranges(self, log_start: int) -> list[DamagedRange]:
        """The corrupt offsets, as far as they are in the log."""
        found = [self.lost] if self.lost is not None else []
        for segment, damage in self.corrupt:
            following = damage.next_offset
            if following == NO_OFFSET:
                following = segment.sealed_at if segment.sealed_at != NO_OFFSET else self.witnessed
            found.append(DamagedRange(damage.first_offset, following, damage.reason))
        clipped = [one._replace(first_offset=max(one.first_offset, log_start)) for one in found]
        return [one for one in clipped if one.first_offset < one.next_offset]


def scan_tail(
    checkpoint: Checkpoint, kept: list[Segment], tail: list[Segment], *, same_boot: bool
) -> Scan:
    """Check every batch behind the checkpoint's durable place.

    Args:
        checkpoint: what the log is opened from.
        kept: the segments in front of the durable one.
        tail: the durable one and those behind it.
        same_boot: nothing written was lost since the checkpoint.

    Raises:
        CorruptMetadataError: two segments claim the same offsets.
    """
    durable = checkpoint.durable
    scan = Scan(durable, durable.offset)
    first = tail[0] if tail else None
    previous = kept[-1] if kept else None
    if first is None or first.base_offset != durable.segment:
        # A segment of which nothing was durable may be missing, one with durable bytes may not.
        if durable.position:
            begin = durable.segment if kept else checkpoint.log_start
            reason = f"segment {durable.segment} is missing"
            scan.lost = DamagedRange(begin, durable.offset, reason)
    elif first.generation == checkpoint.generation and first.size < durable.position:
        _look_at_short(first, durable, scan)
        previous, tail = first, tail[1:]
    for segment in tail:
        _look_at(segment, previous, checkpoint, scan, same_boot=same_boot)
        previous = segment
    return scan


def _look_at_short(segment: Segment, durable: Place, scan: Scan) -> None:
    """Durable bytes are missing from the end of the file."""
    due = segment.base_offset
    with segment.reading() as file:
        for one in walk(file, segment.whole(payloads=True)):
            if isinstance(one, Frame):
                due = one.header.next_offset
            elif one.next_offset != NO_OFFSET:
                due = one.next_offset
    scan.bytes_scanned += segment.size
    reason = f"the file has {segment.size} bytes, {durable.position} were synced"
    scan.damages.append(
        DamageAt(segment, Damage(segment.size, segment.size, due, NO_OFFSET, reason))
    )


def _look_at(
    segment: Segment,
    previous: Segment | None,
    checkpoint: Checkpoint,
    scan: Scan,
    *,
    same_boot: bool,
) -> None:
    at = _begin_of(segment, previous, checkpoint, scan)
    scan.end = at
    rules = segment.from_here(
        at.position, at.offset, payloads=True, epoch_max=checkpoint.leader_epoch
    )
    scan.bytes_scanned += rules.end - rules.position
    with segment.reading() as file:
        for one in walk(file, rules):
            if isinstance(one, Damage):
                scan.damages.append(DamageAt(segment, one))
                due = one.next_offset if one.next_offset != NO_OFFSET else one.first_offset
            else:
                due = one.header.next_offset
            if one.header is not None:
                witness = one.header.next_offset if same_boot else one.header.durable_offset
                scan.witnessed = max(scan.witnessed, witness)
            scan.end = Place(due, segment.base_offset, one.end)


def _begin_of(
    segment: Segment, previous: Segment | None, checkpoint: Checkpoint, scan: Scan
) -> Place:
    """Where to begin in a segment, noting what is missing in front of it."""
    base = segment.base_offset
    if base == checkpoint.durable.segment:
        same_file = segment.generation == checkpoint.generation
        return checkpoint.durable if same_file else Place(base, base, 0)
    due = scan.end.offset
    if base < due:
        raise CorruptMetadataError(
            f"{segment.path} begins at {base}, but the segment in front of it ends at {due}: "
            "two files for the same offsets cannot both be right"
        )
    explained = bool(scan.damages) and scan.damages[-1].damage.next_offset == NO_OFFSET
    if base > due and previous is not None and not explained:
        reason = f"offsets {due} to {base} are in no segment"
        gap = Damage(previous.size, previous.size, due, base, reason)
        scan.damages.append(DamageAt(previous, gap))
    return Place(base, base, 0)
