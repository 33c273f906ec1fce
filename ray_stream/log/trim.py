"""Taking bytes off the ends of a log, in an order that survives a crash at any point.

Owns: truncation and the log start. Refuses: deciding how much goes.

Truncate: the checkpoint's durable place is at or in front of the target and synced; then the bytes
go and that is synced; then epochs and producers are rolled back. Log start: synced in the
checkpoint, then the files may go (STORAGE section 3).
"""

from ray_stream.errors import InvalidArgumentError, StorageError, StorageFullError
from ray_stream.log.checkpoint import Place
from ray_stream.log.frames import Damage
from ray_stream.log.layout import split_left, write_snapshot
from ray_stream.log.mend import add_segment, replay_producers
from ray_stream.log.segment import Segment
from ray_stream.log.state import LogState
from ray_stream.types import NO_OFFSET


def truncate(log: LogState, offset: int, *, now_ms: int) -> None:
    """Cut everything from the batch that holds `offset` on; as `PartitionLog.truncate`."""
    target, place = _place_of(log, offset)
    log.syncs.cancel()
    log.syncs.truncated(place)
    log.capture_wanted = True
    log.epoch_needed = True
    log.readable_once = min(log.readable_once, place.offset)
    log.write_checkpoint()
    while log.active is not target:
        log.segments.pop().unlink()
        # One at a time: a hole in front of a later segment would pass for a loss.
        log.storage.sync_directory(log.directory)
    target.sealed_at = NO_OFFSET
    target.writing().truncate(place.position)
    target.writing().sync()
    target.size = place.position
    target.rebuild_index(log.options.index_interval_bytes)
    log.end = place
    log.producers = replay_producers(
        log.storage, log.segments, log.on_disk, log.options, now_ms=now_ms
    )
    if place.offset < log.start:
        # The log starts inside of the batch that is gone. No offset below the start comes back.
        target.seal(log.start, log.options.index_interval_bytes)
        log.end = log.syncs.place = add_segment(log.storage, log.directory, log.segments, log.start)
        write_snapshot(log.storage, log.active, log.producers, sync=True)
        log.storage.sync_directory(log.directory)
        _let_leave(log)
    log.reader.truncated(place.offset)
    log.epochs.truncate(place.offset)
    log.write_checkpoint()


def _place_of(log: LogState, offset: int) -> tuple[Segment, Place]:
    """The segment that holds `offset`, and where the batch around it begins."""
    segment = next(one for one in reversed(log.segments) if one.base_offset <= offset)
    found = segment.find(offset, log.options.index_interval_bytes)
    if found is None:
        return segment, Place(offset, segment.base_offset, segment.size)
    base = found.first_offset if isinstance(found, Damage) else found.header.base_offset
    return segment, Place(base, segment.base_offset, found.position)


def advance_start(log: LogState, offset: int) -> None:
    """Raise the log start; as `PartitionLog.advance_start`."""
    if offset > log.syncs.place.offset:
        raise InvalidArgumentError(
            f"the start of {log.options.name} cannot become {offset}: only what is below "
            f"{log.syncs.place.offset} was synced"
        )
    if offset <= log.start:
        return
    before, log.start = log.start, offset
    try:
        if offset == log.end.offset and log.active.size:
            log.roll(None)
        log.write_checkpoint()
    except (StorageError, StorageFullError):
        log.start = before
        raise
    log.epochs.advance(offset)
    _let_leave(log)


def _let_leave(log: LogState) -> None:
    """The segments below the log start are not part of the log any more."""
    left, _ = split_left(log.segments, log.start)
    log.left += left
    del log.segments[: len(left)]
