"""Bringing back a partition that a failed sync took offline, or that lost its checkpoint.

Owns: one careful reading of everything from the disk, and a checkpoint made from what was found.
Refuses: running beside an open log (the caller holds the partition's lock), inventing bytes,
deciding that what is lost does not matter: the report says it.

After a failed sync the page cache is not the disk, so the cache is dropped and everything read
again. What was acknowledged is kept as far as it can be read, and written once more: only then do
later syncs cover it. On an `fsync` topic that ends at the durable place, for nothing behind it was
ever acknowledged. A crash is safe at any point: the marker goes last, and with it here the repair
begins anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ray_stream.errors import CorruptMetadataError, StorageError
from ray_stream.log.checkpoint import (
    Checkpoint,
    DamagedRange,
    Place,
    merge_ranges,
    read_checkpoint,
    write_checkpoint,
)
from ray_stream.log.epochs import LeaderEpochs
from ray_stream.log.frames import EPOCH_ANY, Damage
from ray_stream.log.layout import list_segments, split_left
from ray_stream.log.mend import (
    add_segment,
    bytes_behind,
    cut_tail,
    needs_segment,
    offset_behind,
    replay_producers,
)
from ray_stream.log.offline import (
    EVERYTHING,
    OfflineMarker,
    clear_marker,
    read_marker,
    write_marker,
)
from ray_stream.log.options import LogOptions
from ray_stream.log.scan import DamageAt, Scan, scan_tail
from ray_stream.log.segment import Segment
from ray_stream.log.storage import Storage
from ray_stream.types import NO_EPOCH, NO_OFFSET

_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found, kept and gave up.

    Attributes:
        reason: why the partition was offline; empty when it was not.
        start_offset: the log start.
        kept_end: records below are kept, but for the lost ranges.
        bytes_cut: bytes behind `kept_end` that were cut off.
        lost: ranges of records that were durable and cannot be read.
        readable_again: ranges that were quarantined and read well now.
        checkpoint_rebuilt: the checkpoint was missing or damaged. What only it knew is gone:
            records that `delete_records` had removed may be back, and the leader epochs are those
            that batches carry.
    """

    reason: str
    start_offset: int
    kept_end: int
    bytes_cut: int
    lost: tuple[DamagedRange, ...]
    readable_again: tuple[DamagedRange, ...]
    checkpoint_rebuilt: bool


def repair_partition(
    storage: Storage, directory: str, options: LogOptions, *, boot_id: str, now_ms: int
) -> RepairReport:
    """Read a log anew from the disk, and make it servable again; reads every byte.

    Args:
        storage: where it is.
        directory: the partition's own directory, locked by the caller.
        options: the log's settings.
        boot_id: of the machine's current boot.
        now_ms: the wall clock.

    Raises:
        StorageError: the directory is missing, or the disk still refuses.
        CorruptMetadataError: two segments claim the same offsets; nothing was changed.
    """
    if not storage.is_directory(directory):
        raise StorageError(f"{directory} is missing: there is nothing to repair")
    old: Checkpoint | None
    try:
        old = read_checkpoint(storage, directory)
    except CorruptMetadataError:
        old = None
    marker = read_marker(storage, directory)
    repair = _Repair(storage, directory, options, old, marker)
    return repair.run(boot_id=boot_id, now_ms=now_ms)


class _Repair:
    """One repair of one partition."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        options: LogOptions,
        old: Checkpoint | None,
        marker: OfflineMarker | None,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._options = options
        self._old = old
        self._marker = marker
        segments = list_segments(storage, directory)
        if old is None and not segments:
            raise StorageError(f"{directory} has neither checkpoint nor segments: nothing is left")
        self._start = old.log_start if old else segments[0].base_offset
        _, self._segments = split_left(segments, self._start)
        self._durable = (marker.durable if marker else None) or (old.durable if old else None)

    def run(self, *, boot_id: str, now_ms: int) -> RepairReport:
        """Look, cut, write again, sync, record."""
        self._drop_cache()
        scan = self._scan()
        cut = self._cut(scan)
        ranges = self._ranges(scan)
        bytes_cut = bytes_behind(self._segments, cut)
        if self._marker is None:
            began = OfflineMarker("a repair began and did not end", self._durable, EVERYTHING)
            write_marker(self._storage, self._directory, began)
        end = cut_tail(self._segments, cut) if cut else scan.end
        if needs_segment(scan, self._segments, end, self._start):
            offset = offset_behind(scan, ranges, end, self._start)
            end = add_segment(self._storage, self._directory, self._segments, offset)
        self._segments[-1].size = end.position
        for segment in self._segments:
            self._write_again(segment)
        self._storage.sync_directory(self._directory)
        self._record(end, ranges, boot_id=boot_id, now_ms=now_ms)
        clear_marker(self._storage, self._directory)
        return RepairReport(
            reason=self._marker.reason if self._marker else "",
            start_offset=self._start,
            kept_end=end.offset,
            bytes_cut=bytes_cut,
            lost=ranges,
            readable_again=tuple(self._readable_again(ranges)),
            checkpoint_rebuilt=self._old is None,
        )

    def _drop_cache(self) -> None:
        for segment in self._segments:
            with segment.reading() as file:
                file.drop_cache()

    def _scan(self) -> Scan:
        """Check every batch of the log."""
        if not self._segments:
            assert self._durable is not None, "a checkpoint was there"
            scan = Scan(self._durable, self._durable.offset)
            scan.lost = DamagedRange(self._start, self._durable.offset, "all segments are missing")
            return scan
        first = self._segments[0]
        base = first.base_offset
        anew = Checkpoint(
            self._start,
            Place(base, base, 0),
            generation=first.generation,
            leader_epoch=self._old.leader_epoch if self._old else EPOCH_ANY,
        )
        scan = scan_tail(anew, [], self._segments, same_boot=False)
        if base > self._start:
            scan.lost = DamagedRange(self._start, base, "the first segment is missing")
        if self._durable is not None:
            scan.witnessed = max(scan.witnessed, self._durable.offset)
            if scan.end.offset < self._durable.offset and not self._ends_unresolved(scan):
                last = self._segments[-1]
                reason = f"the log ends in front of offset {self._durable.offset}, which was synced"
                gone = Damage(last.size, last.size, scan.end.offset, NO_OFFSET, reason)
                scan.damages.append(DamageAt(last, gone))
        return scan

    def _ends_unresolved(self, scan: Scan) -> bool:
        return bool(scan.damages) and scan.damages[-1].damage.next_offset == NO_OFFSET

    def _cut(self, scan: Scan) -> DamageAt | None:
        """Where to cut: a torn tail, or what nobody was told of when the sync failed."""
        acknowledged = self._marker.readable_end if self._marker else EVERYTHING
        if acknowledged == NO_OFFSET:
            acknowledged = EVERYTHING
        torn = scan.cut
        end = torn.damage.first_offset if torn else scan.end.offset
        acknowledged = max(acknowledged, scan.witnessed)
        if acknowledged >= end:
            return torn
        segment = next(one for one in reversed(self._segments) if one.base_offset <= acknowledged)
        found = segment.find(acknowledged, self._options.index_interval_bytes)
        if found is None:
            return torn
        position = found.position
        return DamageAt(
            segment, Damage(position, found.end, acknowledged, NO_OFFSET, "never acknowledged")
        )

    def _ranges(self, scan: Scan) -> tuple[DamagedRange, ...]:
        return merge_ranges(tuple(scan.ranges(self._start)))

    def _readable_again(self, lost: tuple[DamagedRange, ...]) -> Iterator[DamagedRange]:
        for one in self._old.quarantine if self._old else ():
            if not any(
                still.first_offset < one.next_offset and one.first_offset < still.next_offset
                for still in lost
            ):
                yield one

    def _write_again(self, segment: Segment) -> None:
        """What was not surely durable is written once more, the same bytes in place, and synced."""
        file = segment.writing()
        durable = self._durable
        if durable is None or segment.base_offset >= durable.segment:
            same = durable is not None and segment.base_offset == durable.segment
            position = durable.position if durable is not None and same else 0
            while position < segment.size:
                chunk = file.read(min(_CHUNK_BYTES, segment.size - position), position)
                if not chunk:
                    break
                file.write([chunk], position)
                position += len(chunk)
        file.sync()
        segment.close()

    def _record(
        self, end: Place, ranges: tuple[DamagedRange, ...], *, boot_id: str, now_ms: int
    ) -> None:
        """A checkpoint of what is there now."""
        old = self._old
        epochs = LeaderEpochs(old.leader_epoch, old.epochs) if old else LeaderEpochs(NO_EPOCH)
        epochs.truncate(min(self._durable.offset if self._durable else 0, end.offset))
        base = self._segments[0].base_offset
        begin = Checkpoint(self._start, Place(base, base, 0))
        producers = replay_producers(
            self._storage,
            self._segments,
            begin,
            self._options,
            now_ms=now_ms,
            epochs=epochs,
            snapshots=True,
        )
        last = self._segments[-1]
        last.index.flush()
        checkpoint = replace(
            begin,
            durable=end,
            generation=last.generation,
            first_timestamp=last.first_timestamp,
            max_timestamp=last.max_timestamp,
            leader_epoch=epochs.claimed,
            epochs=epochs.entries,
            quarantine=ranges,
            boot_id=boot_id,
            epoch_needed=True,
            producers_at=end,
            producers=producers.encode(end.offset),
        )
        write_checkpoint(self._storage, self._directory, checkpoint)
