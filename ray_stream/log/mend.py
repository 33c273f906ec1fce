"""The steps that recovery and repair share, once it is known what is damaged.

Owns: cutting a torn tail, going on behind damage, and folding batches into producer state. Refuses:
judging damage (`scan`), and the order of durable steps (`recovery`, `repair`).
"""

import contextlib
from collections.abc import Sequence

from ray_stream.errors import StorageFullError
from ray_stream.log.checkpoint import Checkpoint, DamagedRange, Place
from ray_stream.log.epochs import LeaderEpochs
from ray_stream.log.frames import Frame
from ray_stream.log.layout import read_snapshot, write_snapshot
from ray_stream.log.options import LogOptions
from ray_stream.log.producers import Producers
from ray_stream.log.scan import DamageAt, Scan
from ray_stream.log.segment import Segment
from ray_stream.log.storage import Storage
from ray_stream.types import NO_OFFSET, NO_TIMESTAMP


def bytes_behind(tail: list[Segment], cut: DamageAt | None) -> int:
    """How many bytes `cut_tail` would cut off."""
    if cut is None:
        return 0
    segment, damage = cut
    later = sum(one.size for one in tail if one.base_offset > segment.base_offset)
    return later + max(segment.size - damage.position, 0)


def cut_tail(tail: list[Segment], cut: DamageAt) -> Place:
    """Remove everything from `cut` on, newest segments first; not synced.

    Args:
        tail: the segments that may be touched, changed in place.
        cut: in one of them, or at the end of the segment in front of them.

    Returns:
        Where the log ends now.
    """
    segment, damage = cut
    while tail and tail[-1].base_offset > segment.base_offset:
        tail.pop().unlink()
    segment.sealed_at = NO_OFFSET
    if tail:
        segment.writing().truncate(damage.position)
        segment.size = damage.position
    else:
        assert damage.position == segment.size, "what is in front of the tail is not cut"
    return Place(damage.first_offset, segment.base_offset, damage.position)


def ends_in_damage(scan: Scan, last: Segment) -> bool:
    """Whether the last segment ends in bytes behind which nothing could be found again."""
    corrupt = scan.corrupt
    if not corrupt:
        return False
    segment, damage = corrupt[-1]
    return segment is last and damage.next_offset == NO_OFFSET


def needs_segment(scan: Scan, segments: list[Segment], end: Place, log_start: int) -> bool:
    """Whether nothing can be appended to the last segment there is."""
    return not segments or end.offset < log_start or ends_in_damage(scan, segments[-1])


def offset_behind(scan: Scan, ranges: Sequence[DamagedRange], end: Place, log_start: int) -> int:
    """The first offset that was never durable nor below the log start."""
    return max([end.offset, scan.witnessed, log_start, *(one.next_offset for one in ranges)])


def add_segment(storage: Storage, directory: str, segments: list[Segment], offset: int) -> Place:
    """Go on in a new file; its name is not synced.

    Returns:
        Where the log ends now.
    """
    segment = Segment(storage, directory, offset)
    segment.create()
    if segments:
        segments[-1].sealed_at = offset
    segments.append(segment)
    return Place(offset, offset, 0)


def replay_producers(
    storage: Storage,
    segments: list[Segment],
    checkpoint: Checkpoint,
    options: LogOptions,
    *,
    now_ms: int,
    epochs: LeaderEpochs | None = None,
    snapshots: bool = False,
) -> Producers:
    """Fold the batches behind the last known producer state into it, and index them.

    Args:
        storage: where the segments are.
        segments: the log; the last one's `size` says where it ends.
        checkpoint: where the state begins.
        options: the log's settings.
        now_ms: the wall clock, to forget who was silent too long.
        epochs: learns the leader epochs of the batches too.
        snapshots: write the snapshots that are passed, synced: a power loss may have taken them.
    """
    producers, begin = _last_known(storage, segments, checkpoint)
    interval = options.index_interval_bytes
    for segment in segments:
        if segment.base_offset < begin.segment:
            continue
        at = begin if segment.base_offset == begin.segment else None
        at = at or Place(segment.base_offset, segment.base_offset, 0)
        if snapshots and at.position == 0 and segment.base_offset:
            # On a full disk the log opens all the same.
            with contextlib.suppress(StorageFullError):
                write_snapshot(storage, segment, producers, sync=True)
        if at.position == 0:
            segment.max_timestamp = NO_TIMESTAMP
        if at.position == segment.size:
            continue
        for one in segment.replay(segment.from_here(at.position, at.offset), interval):
            if isinstance(one, Frame):
                producers.replay(one.header, expiry_ms=options.producer_expiry_ms)
                if epochs is not None:
                    epochs.observe(one.header.leader_epoch, one.header.base_offset)
        if segment.sealed_at != NO_OFFSET:
            segment.seal(segment.sealed_at, interval)
    producers.expire(now_ms=now_ms, expiry_ms=options.producer_expiry_ms)
    return producers


def _last_known(
    storage: Storage, segments: list[Segment], checkpoint: Checkpoint
) -> tuple[Producers, Place]:
    """The newest producer state that can be read, and where it stands."""
    if checkpoint.producers_at is not None:
        at = checkpoint.producers_at
        return Producers.decode(checkpoint.producers, at.offset), at
    for segment in reversed(segments):
        if segment.base_offset > checkpoint.durable.segment:
            continue
        producers = read_snapshot(storage, segment)
        if producers is not None:
            return producers, Place(segment.base_offset, segment.base_offset, 0)
    base = segments[0].base_offset
    return Producers(), Place(base, base, 0)
