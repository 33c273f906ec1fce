"""A log as `status`, retention and local readers see it.

Owns: plain values, and how they are taken from an open log. Refuses: behaviour.
"""

from dataclasses import dataclass

from ray_stream.log.checkpoint import DamagedRange
from ray_stream.log.state import LogState
from ray_stream.types import NO_OFFSET


@dataclass(frozen=True, slots=True)
class SegmentDescription:
    """One segment.

    Attributes:
        base_offset: its first offset.
        generation: how often the file was replaced.
        next_offset: the offset behind it.
        size_bytes: bytes that were written, synced or not.
        max_timestamp: the greatest time of its records, ms; -1 while it has none.
    """

    base_offset: int
    generation: int
    next_offset: int
    size_bytes: int
    max_timestamp: int


@dataclass(frozen=True, slots=True)
class LogDescription:
    """One log. Offsets are those of `PartitionLog`'s properties."""

    start_offset: int
    written_end: int
    synced_end: int
    readable_end: int
    leader_epoch: int
    producers: int
    segments: tuple[SegmentDescription, ...]
    quarantined: tuple[DamagedRange, ...]
    offline: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size_bytes for segment in self.segments)


def describe(log: LogState) -> LogDescription:
    """An open log as it is now."""
    interval = log.options.index_interval_bytes
    return LogDescription(
        start_offset=log.start,
        written_end=log.end.offset,
        synced_end=log.syncs.place.offset,
        readable_end=log.readable_end,
        leader_epoch=log.epochs.claimed,
        producers=len(log.producers),
        segments=tuple(
            SegmentDescription(
                one.base_offset,
                one.generation,
                one.sealed_at if one.sealed_at != NO_OFFSET else log.end.offset,
                one.size,
                one.greatest_time(interval),
            )
            for one in log.segments
        ),
        quarantined=log.reader.quarantine,
        offline=log.offline,
    )
