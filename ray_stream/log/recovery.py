"""What is kept of a log after a crash, and why (STORAGE section 4).

Owns: opening a log from its checkpoint: telling a torn tail from corruption, cutting the one and
quarantining the other, and making everything kept durable before the first answer. Refuses:
appends, reads, and repairing what a failed sync left (`repair`).

Bytes in front of the checkpoint's durable place were synced and are not looked at. Behind it every
batch is checked. Bad bytes are **corruption** when they lie below the greatest durable offset that
any believable header behind the checkpoint states, for then they were acknowledged once;
otherwise they are a **torn tail** and cut, with all that follows. In the same boot nothing that was
written is lost by the death of a process, so there every believable header is such a witness.

A crash during recovery is safe: before the first cut the checkpoint says that a new leader epoch is
needed and which ranges are quarantined, segments are removed newest first, and the durable place
moves last.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ray_stream.errors import StorageError, StorageOfflineError
from ray_stream.log.checkpoint import (
    Checkpoint,
    DamagedRange,
    Place,
    merge_ranges,
    read_checkpoint,
    write_checkpoint,
)
from ray_stream.log.epochs import LeaderEpochs
from ray_stream.log.layout import list_segments, parent_of, split_left
from ray_stream.log.mend import (
    add_segment,
    bytes_behind,
    cut_tail,
    needs_segment,
    offset_behind,
    replay_producers,
)
from ray_stream.log.offline import EVERYTHING, OfflineMarker, write_marker
from ray_stream.log.options import LogOptions
from ray_stream.log.producers import Producers
from ray_stream.log.scan import scan_tail
from ray_stream.log.segment import Segment
from ray_stream.log.storage import Storage
from ray_stream.types import NO_EPOCH, NO_OFFSET


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening a log found and did.

    Attributes:
        clean: it was closed in order, nothing had to be looked at.
        same_boot: the machine ran on since the checkpoint was written.
        segments_scanned: segments that were read.
        bytes_scanned: bytes that were read and checked.
        bytes_cut: bytes that were cut off.
        torn_tail: whether anything was cut off.
        quarantined: ranges found damaged by this recovery; they stay unreadable.
        needs_new_epoch: a new leader epoch must begin before the first append.
        offline: why the log cannot be written to; empty when it can.
    """

    clean: bool = False
    same_boot: bool = False
    segments_scanned: int = 0
    bytes_scanned: int = 0
    bytes_cut: int = 0
    torn_tail: bool = False
    quarantined: tuple[DamagedRange, ...] = ()
    needs_new_epoch: bool = False
    offline: str = ""


@dataclass(slots=True)
class Recovered:
    """An opened log's state."""

    segments: list[Segment]
    """Oldest first; the last one is written to."""
    left: list[Segment]
    """Files below the log start that are not unlinked yet."""
    end: Place
    epochs: LeaderEpochs
    producers: Producers
    checkpoint: Checkpoint
    """As it is on the disk."""
    report: RecoveryReport


def recover(
    storage: Storage, directory: str, options: LogOptions, *, boot_id: str, now_ms: int
) -> Recovered:
    """Open a log that is not offline.

    Raises:
        CorruptMetadataError: the checkpoint is missing or damaged, or segments overlap.
        DataDirVersionError: written by a newer version.
        StorageError: the system refused something; a refused sync must take the log offline.
    """
    checkpoint = read_checkpoint(storage, directory)
    if checkpoint.leader_epoch == NO_EPOCH:
        # Whoever made the log may have died in front of the sync of the directory's own name.
        storage.sync_directory(parent_of(directory))
    left, segments = split_left(list_segments(storage, directory), checkpoint.log_start)
    recovery = _Recovery(storage, directory, options, checkpoint, boot_id, now_ms)
    if recovery.ends_at_checkpoint(segments):
        return recovery.resume(segments, left)
    opened = [*segments]
    try:
        return recovery.scan(segments, left)
    except BaseException:
        for segment in opened:
            segment.close()
        raise


def open_offline(storage: Storage, directory: str, marker: OfflineMarker) -> Recovered:
    """Open a log whose sync failed, up to what was durable; nothing behind it is looked at.

    Raises:
        CorruptMetadataError, DataDirVersionError, StorageError: as `recover`.
    """
    checkpoint = read_checkpoint(storage, directory)
    durable = marker.durable or checkpoint.durable
    left, segments = split_left(list_segments(storage, directory), checkpoint.log_start)
    segments = [one for one in segments if one.base_offset <= durable.segment]
    if not segments or segments[-1].base_offset != durable.segment:
        segments.append(Segment(storage, directory, durable.segment))
    segments[-1].sealed_at = NO_OFFSET
    segments[-1].size = durable.position
    epochs = LeaderEpochs(checkpoint.leader_epoch, checkpoint.epochs)
    epochs.truncate(durable.offset + 1)
    report = RecoveryReport(offline=marker.reason, needs_new_epoch=True)
    return Recovered(segments, left, durable, epochs, Producers(), checkpoint, report)


class _Recovery:
    """One opening of one log."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        options: LogOptions,
        checkpoint: Checkpoint,
        boot_id: str,
        now_ms: int,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._options = options
        self._checkpoint = checkpoint
        self._now_ms = now_ms
        self._same_boot = bool(boot_id) and checkpoint.boot_id == boot_id
        self._boot_id = boot_id

    # --- nothing behind the checkpoint -----------------------------------------------------------

    def ends_at_checkpoint(self, segments: list[Segment]) -> bool:
        """Whether the files end exactly where the checkpoint says."""
        durable = self._checkpoint.durable
        if not segments:
            return False
        last = segments[-1]
        return (
            self._checkpoint.log_start <= durable.offset
            and last.base_offset == durable.segment
            and last.generation == self._checkpoint.generation
            and last.size == durable.position
        )

    def resume(self, segments: list[Segment], left: list[Segment]) -> Recovered:
        """Go on where the checkpoint ends: nothing is read."""
        checkpoint = self._checkpoint
        # Unsynced batches may have vanished with the power without a trace. Whoever saw them must
        # not see others with the same offset and epoch.
        lost = not checkpoint.clean and not self._same_boot
        report = RecoveryReport(
            clean=checkpoint.clean,
            same_boot=self._same_boot,
            needs_new_epoch=checkpoint.epoch_needed or lost,
        )
        if self._same_boot or not self._boot_id:
            # Whoever wrote the checkpoint may have died in front of the sync of its name; what it
            # says is about to be shown, so it must not be forgotten.
            self._synced(lambda: self._storage.sync_directory(self._directory))
        epochs = LeaderEpochs(checkpoint.leader_epoch, checkpoint.epochs)
        self._restore_times(segments)
        producers = self._replay(segments, checkpoint.durable, epochs)
        return Recovered(segments, left, checkpoint.durable, epochs, producers, checkpoint, report)

    # --- something behind it ---------------------------------------------------------------------

    def scan(self, segments: list[Segment], left: list[Segment]) -> Recovered:
        """Judge what is behind the checkpoint, cut or quarantine, sync, replay."""
        durable = self._checkpoint.durable
        kept = [one for one in segments if one.base_offset < durable.segment]
        tail = [one for one in segments if one.base_offset >= durable.segment]
        if self._same_boot:
            self._read_anew(tail)
        scan = scan_tail(self._checkpoint, kept, tail, same_boot=self._same_boot)
        ranges = scan.ranges(self._checkpoint.log_start)
        damaged = bool(scan.cut or ranges)
        report = RecoveryReport(
            same_boot=self._same_boot,
            segments_scanned=len(tail),
            bytes_scanned=scan.bytes_scanned,
            bytes_cut=bytes_behind(tail, scan.cut),
            torn_tail=scan.cut is not None,
            quarantined=tuple(ranges),
            needs_new_epoch=(damaged or self._checkpoint.epoch_needed or not self._same_boot),
        )
        if damaged:
            self._announce(ranges)
        end = cut_tail(tail, scan.cut) if scan.cut else scan.end
        self._synced(lambda: self._sync(tail, again=scan.cut is not None))
        segments = [*kept, *tail]
        log_start = self._checkpoint.log_start
        added = not tail or needs_segment(scan, segments, end, log_start)
        if added:
            offset = offset_behind(scan, ranges, end, log_start)
            end = add_segment(self._storage, self._directory, segments, offset)
        for segment in segments:
            segment.close()
        self._restore_times(segments)
        epochs = LeaderEpochs(self._checkpoint.leader_epoch, self._checkpoint.epochs)
        producers = self._replay(segments, end, epochs)
        self._synced(lambda: self._storage.sync_directory(self._directory))
        if damaged or added:
            self._settle(segments[-1], end, epochs, producers)
        return Recovered(segments, left, end, epochs, producers, self._checkpoint, report)

    def _synced(self, action: Callable[[], None]) -> None:
        """Do what makes bytes durable; a failure takes the log offline, for whoever opens it."""
        try:
            action()
        except StorageError as error:
            reason = f"a sync failed while the log was opened: {error}"
            marker = OfflineMarker(reason, self._checkpoint.durable, EVERYTHING)
            write_marker(self._storage, self._directory, marker)
            raise StorageOfflineError(reason) from error

    def _read_anew(self, tail: list[Segment]) -> None:
        """Make the page cache tell the truth.

        Had the process died between a failed sync and its record of it, the cache would show bytes
        that no later sync writes.
        """
        for segment in tail:
            file = segment.writing()
            self._synced(file.sync)
            file.drop_cache()

    def _announce(self, ranges: list[DamagedRange]) -> None:
        """Before anything is cut: what a crash from here on must not forget."""
        self._checkpoint = replace(
            self._checkpoint,
            clean=False,
            epoch_needed=True,
            quarantine=merge_ranges((*self._checkpoint.quarantine, *ranges)),
        )
        write_checkpoint(self._storage, self._directory, self._checkpoint)

    def _sync(self, tail: list[Segment], *, again: bool) -> None:
        """Everything kept; in the same boot that was done before the scan."""
        if again or not self._same_boot:
            for segment in tail:
                segment.writing().sync()

    def _restore_times(self, segments: list[Segment]) -> None:
        """Of the durable segment, which is gone on with in its middle."""
        for segment in segments:
            if segment.base_offset == self._checkpoint.durable.segment:
                segment.first_timestamp = self._checkpoint.first_timestamp
                segment.max_timestamp = self._checkpoint.max_timestamp

    # --- what the batches say --------------------------------------------------------------------

    def _replay(self, segments: list[Segment], end: Place, epochs: LeaderEpochs) -> Producers:
        segments[-1].size = end.position
        epochs.truncate(end.offset + 1)
        return replay_producers(
            self._storage,
            segments,
            self._checkpoint,
            self._options,
            now_ms=self._now_ms,
            epochs=epochs,
            snapshots=not self._checkpoint.clean,
        )

    def _settle(
        self, segment: Segment, end: Place, epochs: LeaderEpochs, producers: Producers
    ) -> None:
        """Everything kept is durable now: the checkpoint may say so."""
        self._checkpoint = replace(
            self._checkpoint,
            durable=end,
            generation=segment.generation,
            first_timestamp=segment.first_timestamp,
            max_timestamp=segment.max_timestamp,
            leader_epoch=epochs.claimed,
            epochs=epochs.entries,
            boot_id=self._boot_id,
            producers_at=end,
            producers=producers.encode(end.offset),
        )
        write_checkpoint(self._storage, self._directory, self._checkpoint)
