"""One partition's log: the single writer of its directory, and the only judge of its offsets.

Owns: segments, the written and the synced end, leader epochs, producer state, quarantined ranges
and the checkpoint. Refuses: threads (only `SyncJob.run` may be called on another one), clocks,
deciding when to sync, who leads, and what retention removes.

The rules that it keeps (STORAGE sections 3 and 4):

* Nothing at or behind `readable_end` is for anyone; on an `fsync` topic it is the synced end.
* A batch is written whole or not at all, behind the last one. A full disk refuses appends only.
* A failed sync takes the log offline, durably; no later sync brings it back, only `repair`.
* The checkpoint's durable place never runs ahead of what was synced.
* Once anything was cut off, a new leader epoch must begin before the next append: one (offset,
  epoch) never has two contents.
"""

from collections.abc import Sequence

from ray_stream.errors import (
    ClosedError,
    FencedLeaderEpochError,
    OffsetOutOfRangeError,
    RayStreamError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
    UnknownLeaderEpochError,
)
from ray_stream.log import trim
from ray_stream.log.append import Appended, Staged, Stamps, refuse_rest, stage
from ray_stream.log.checkpoint import Place
from ray_stream.log.description import LogDescription, describe
from ray_stream.log.layout import create_log, delete_log
from ray_stream.log.offline import read_marker
from ray_stream.log.options import LogOptions
from ray_stream.log.reader import ReadResult
from ray_stream.log.recovery import Recovered, RecoveryReport, open_offline, recover
from ray_stream.log.state import LogState
from ray_stream.log.storage import Buffer, Storage
from ray_stream.log.sync import SyncJob
from ray_stream.types import Durability

__all__ = ["Appended", "PartitionLog", "ReadResult", "RecoveryReport", "SyncJob", "delete_log"]


class PartitionLog:
    """An open log. Every method but `SyncJob.run` belongs to one owner's thread."""

    def __init__(
        self, storage: Storage, directory: str, options: LogOptions, boot_id: str, found: Recovered
    ) -> None:
        """Use `create` or `open`."""
        self._log = LogState(storage, directory, options, boot_id, found)
        self._closed = False
        self.recovery = found.report
        """What opening the log found and did."""

    @classmethod
    def create(
        cls, storage: Storage, directory: str, options: LogOptions, *, boot_id: str, now_ms: int
    ) -> "PartitionLog":
        """Make a new, empty log. It appears under its name complete and durable, or not at all.

        Raises:
            StorageError: the directory exists already, or the system refused.
        """
        create_log(storage, directory, boot_id=boot_id)
        return cls.open(storage, directory, options, boot_id=boot_id, now_ms=now_ms)

    @classmethod
    def open(
        cls, storage: Storage, directory: str, options: LogOptions, *, boot_id: str, now_ms: int
    ) -> "PartitionLog":
        """Open the log that is there, recovering what a crash left (`log.recovery`).

        A log whose sync failed opens offline: what was durable can be read, nothing appended.

        Args:
            storage: where it is.
            directory: the partition's own directory.
            options: its settings.
            boot_id: of the machine's current boot.
            now_ms: the wall clock, to forget producers that were silent too long.

        Raises:
            StorageError: there is no such directory: missing is not empty. Or the system refused.
            CorruptMetadataError: the checkpoint is missing or damaged; `repair` makes it again.
            DataDirVersionError: written by a newer version.
        """
        if not storage.is_directory(directory):
            raise StorageError(
                f"{directory} is missing, and missing is not empty: bring the directory back, or "
                "delete the topic"
            )
        marker = read_marker(storage, directory)
        if marker is None:
            try:
                found = recover(storage, directory, options, boot_id=boot_id, now_ms=now_ms)
            except StorageOfflineError:
                marker = read_marker(storage, directory)
                if marker is None:
                    raise
            else:
                return cls(storage, directory, options, boot_id, found)
        return cls(storage, directory, options, boot_id, open_offline(storage, directory, marker))

    # --- ends ------------------------------------------------------------------------------------

    @property
    def start_offset(self) -> int:
        """The first offset of the log."""
        return self._log.start

    @property
    def written_end(self) -> int:
        """Behind the last batch that was written."""
        return self._log.end.offset

    @property
    def synced_end(self) -> int:
        """Everything below is on stable storage."""
        return self._log.syncs.place.offset

    @property
    def readable_end(self) -> int:
        """Nobody may see this offset or one behind it. With one replica, the high watermark."""
        return self._log.readable_end

    @property
    def leader_epoch(self) -> int:
        """The highest leader epoch that ever began here; -1: none."""
        return self._log.epochs.claimed

    @property
    def unsynced_segments(self) -> int:
        """Sealed segments that are not durable yet, and so open."""
        return self._log.syncs.unsynced_segments

    @property
    def offline(self) -> str:
        """Why nothing can be appended; empty when it can."""
        return self._log.offline

    @property
    def options(self) -> LogOptions:
        """The settings in force."""
        return self._log.options

    def set_options(self, options: LogOptions) -> int:
        """Take new settings.

        Returns:
            The change may be confirmed once `synced_end` has reached this offset: a topic that
            becomes `fsync` is synced first. What could be read before stays readable meanwhile.
        """
        self._log.readable_once = self.readable_end
        self._log.options = options
        self._log.reader.set_options(options)
        return self._log.end.offset if options.durability == Durability.FSYNC else 0

    # --- leader epochs ---------------------------------------------------------------------------

    def begin_epoch(self, leader_epoch: int) -> None:
        """A leader begins here; durable when this returns.

        Raises:
            FencedLeaderEpochError: the epoch is not above every one before.
            StorageError, StorageFullError: it could not be recorded; nothing changed.
        """
        epochs = self._log.epochs.copy()
        epochs.begin(leader_epoch, self._log.end.offset)
        before, needed = self._log.epochs, self._log.epoch_needed
        self._log.epochs, self._log.epoch_needed = epochs, False
        try:
            self._log.write_checkpoint()
        except (StorageError, StorageFullError):
            self._log.epochs, self._log.epoch_needed = before, needed
            raise

    def last_epoch_end(self, epoch: int) -> tuple[int, int]:
        """Where the greatest leader epoch at or below `epoch` ends: (that epoch, end offset).

        (-1, -1) when no such epoch is known, or `epoch` is above all that began here.
        """
        return self._log.epochs.end_of(epoch, self._log.end.offset)

    def _refusal(self, leader_epoch: int) -> RayStreamError | None:
        """Why nothing at all may be appended with this leader epoch."""
        name, current = self._log.options.name, self._log.epochs.claimed
        if self._closed:
            return ClosedError(f"the log of {name} was closed: open it again")
        if self._log.offline:
            return self._log.offline_error()
        if leader_epoch > current:
            return UnknownLeaderEpochError(
                f"leader epoch {leader_epoch} of {name} did not begin here, {current} did last"
            )
        if leader_epoch < current or leader_epoch < 0:
            return FencedLeaderEpochError(
                f"leader epoch {leader_epoch} of {name} is over, {current} is the last one"
            )
        if self._log.epoch_needed:
            return FencedLeaderEpochError(
                f"bytes of {name} were lost or cut off in leader epoch {current}: begin a new one "
                "before appending"
            )
        return None

    # --- append ----------------------------------------------------------------------------------

    def append(
        self,
        batches: Sequence[Buffer],
        *,
        leader_epoch: int,
        now_ms: int,
        produced: bool = True,
        keep: bool = False,
    ) -> list[Appended | RayStreamError]:
        """Write batches behind the last one: all that pass, with one write for each segment.

        A duplicate is answered like the first time; for it too the caller waits until `synced_end`
        has reached `next_offset`.

        Args:
            batches: as they were received.
            leader_epoch: the caller's.
            now_ms: the append time that is stamped.
            produced: False for batches of our own making, such as control batches (`check_batch`).
            keep: short ones in memory until `forget_kept`, for readers who wait for them.

        Returns:
            For each batch where it stands, or why it was refused. A full disk gives
            `StorageFullError` and the next call tries again; any other refusal of the system
            gives `StorageOfflineError`, and so do all later calls.
        """
        refusal = self._refusal(leader_epoch)
        if refusal is not None:
            return [refusal] * len(batches)
        log, options = self._log, self._log.options
        log.now_ms = now_ms
        stamps = Stamps(log.end.offset, leader_epoch, now_ms, log.syncs.place.offset)
        draft = log.producers.draft(now_ms=now_ms, expiry_ms=options.producer_expiry_ms)
        results, staged = stage(batches, options, draft, stamps, produced=produced)
        log.reader.forget_kept()
        begin = first = 0
        try:
            if staged and log.on_disk.clean:
                log.write_checkpoint()
            while first < len(staged):
                begin, first = first, self._write_some(staged, first, now_ms)
            if keep and staged:
                log.reader.keep(staged[begin:])
        except StorageFullError as error:
            refuse_rest(results, staged[first].number, error)
            try:
                # A part of the write may be on the disk, and a power loss could bring it back.
                self._log.active.writing().sync()
            except StorageFullError:
                pass  # it could not be opened, now or before: nothing was written
            except StorageError as lost:
                self._log.sync_lost(lost)
        except StorageError as error:
            self._log.go_offline(f"a write failed: {error}")
            refuse_rest(results, staged[first].number, self._log.offline_error())
        return results

    def _write_some(self, staged: list[Staged], first: int, now_ms: int) -> int:
        """Write from `first` on what fits the segment, and return where the rest begins."""
        log, options = self._log, self._log.options
        active, before = log.active, log.end
        position = active.size
        size = position + staged[first].header.batch_bytes
        age_ms = now_ms - active.first_timestamp
        if position and (size > options.segment_bytes or age_ms >= options.segment_ms):
            log.roll(now_ms)
            active, before = log.active, log.end
            size = staged[first].header.batch_bytes
        end = first + 1
        while end < len(staged):
            longer = size + staged[end].header.batch_bytes
            if longer > options.segment_bytes:
                break
            size = longer
            end += 1
        group = staged[first:end]
        active.append(group, options.index_interval_bytes)
        log.reader.remember(before.offset, active, before.position)
        for one in group:
            log.producers.replay(one.header, expiry_ms=options.producer_expiry_ms)
        log.end = Place(group[-1].header.next_offset, active.base_offset, size)
        return end

    def forget_kept(self) -> None:
        """Who waited for what was kept has it, unless it may not be read yet."""
        if self.readable_end == self._log.end.offset:
            self._log.reader.forget_kept()

    def roll(self) -> None:
        """Close the written segment and begin a new one; nothing when it is empty.

        Raises:
            StorageError: refused; the log is as before.
        """
        if self._log.active.size:
            self._log.roll(None)

    # --- sync ------------------------------------------------------------------------------------

    def sync_job(self) -> SyncJob | None:
        """A round of syncs for everything written before this call.

        None: nothing is to be synced, a round is under way already, or no sync can help.
        """
        syncs = self._log.syncs
        if syncs.job is not None or syncs.lost or self._closed:
            return None
        if syncs.place.offset == self._log.end.offset:
            return None
        return syncs.begin(self._log.active, self._log.end, self._log.producers_to_capture())

    def synced(self, job: SyncJob) -> None:
        """A round has ended well: what it covered is durable."""
        self._log.syncs.ended(job)

    def sync_failed(self, job: SyncJob, error: StorageError) -> RayStreamError:
        """A round failed: the log is offline from now on, also for whoever opens it next.

        Returns:
            The error for all who wait for syncs: `OutcomeUnknownError` if that was not recorded.
        """
        del job
        return self._log.sync_lost(error)

    # --- read ------------------------------------------------------------------------------------

    def read(
        self, offset: int, *, bytes_max: int, end_offset: int, in_place: bool = False
    ) -> ReadResult:
        """Whole batches from the one that holds `offset` on, out of one segment.

        Args:
            offset: where to begin; the first batch may begin in front of it.
            bytes_max: about so many bytes; at least one batch is returned.
            end_offset: no batch that reaches behind it; `readable_end`, or less.
            in_place: tell where they are instead, for one who sees the same file.

        Raises:
            OffsetOutOfRangeError: outside of the log.
            CorruptRecordError: the bytes at `offset` are damaged. Batches in front of damage are
                returned first.
            StorageError: the system refused to read.
        """
        end_offset = min(end_offset, self._log.end.offset)
        if not self._log.start <= offset <= self._log.end.offset:
            here = (self._log.options.topic, self._log.options.partition)
            raise OffsetOutOfRangeError(*here, offset, self._log.start, self.readable_end)
        if offset >= end_offset:
            return ReadResult((), offset)
        log_end = self._log.end.offset
        return self._log.reader.read(
            offset, bytes_max=bytes_max, end_offset=end_offset, log_end=log_end, in_place=in_place
        )

    def offset_for_timestamp(self, timestamp: int) -> tuple[int, int] | None:
        """The first readable batch with a record at or after `timestamp` (ms).

        Returns:
            (offset, timestamp): the batch's base offset (or the log start inside of it), and the
            batch's greatest time: which record it is, only a decoder can say. Damage that may have
            held such a record is returned in front of the batch. None: there is no such record.
        """
        found = self._log.reader.find_timestamp(timestamp, self._log.start)
        return found if found is not None and found[0] < self.readable_end else None

    # --- both ends -------------------------------------------------------------------------------

    def truncate(self, offset: int, *, now_ms: int) -> None:
        """Cut everything from the batch that holds `offset` on; durable when this returns.

        Raises:
            OffsetOutOfRangeError: below the log start.
            StorageOfflineError: the system refused part-way; opening the log again recovers it.
        """
        if offset >= self._log.end.offset:
            return
        if offset < self._log.start:
            here = (self._log.options.topic, self._log.options.partition)
            raise OffsetOutOfRangeError(*here, offset, self._log.start, self._log.end.offset)
        if self._log.offline:
            raise self._log.offline_error()
        try:
            trim.truncate(self._log, offset, now_ms=now_ms)
        except (StorageError, StorageFullError) as error:
            self._log.go_offline(f"a truncation failed: {error}")
            raise self._log.offline_error() from error

    def advance_start(self, offset: int) -> tuple[int, ...]:
        """Raise the log start; durable when this returns. The files stay until `unlink_left`.

        Args:
            offset: the new start, at most `synced_end`; a lower one than now changes nothing.

        Returns:
            Base offsets of all segments that have left the log and wait for `unlink_left`.

        Raises:
            InvalidArgumentError: above the synced end.
            StorageError: it could not be recorded; nothing changed.
        """
        trim.advance_start(self._log, offset)
        return self.left

    @property
    def left(self) -> tuple[int, ...]:
        """Base offsets of the segments below the log start whose files are still there."""
        return tuple(segment.base_offset for segment in self._log.left)

    def unlink_left(self, base_offsets: Sequence[int]) -> None:
        """Remove files of segments that `advance_start` reported, when no reader has them open."""
        for segment in [one for one in self._log.left if one.base_offset in base_offsets]:
            segment.unlink()
            self._log.left.remove(segment)

    # --- checkpoint and close --------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        """Whether a `checkpoint` has more to record than a few batches."""
        return self._log.checkpoint_due

    @property
    def unrecorded_bytes(self) -> int:
        """About what an opening after a crash would read again: all of a new segment, if any."""
        durable, end = self._log.on_disk.durable, self._log.end
        return end.position - (durable.position if durable.segment == end.segment else 0)

    def checkpoint(self) -> None:
        """Record the durable place, so that the next opening begins there; a few syncs.

        For an idle moment, and every so many bytes: what is written behind the checkpoint is read
        again by the next opening that follows a crash. An idle log gives its descriptor back here.

        Raises:
            StorageError: refused; the old checkpoint holds.
        """
        log = self._log
        log.producers.expire(now_ms=log.now_ms, expiry_ms=log.options.producer_expiry_ms)
        log.active.index.flush()
        log.write_checkpoint()
        log.rolled = log.reader.damage_found = False
        log.capture_wanted = True
        log.rest()

    def rest(self, *, sync: bool = False) -> bool:
        """Give the descriptors back until the next write; readers open files for each use.

        Args:
            sync: sync first what is not durable. Else nothing that is unsynced is closed, because
                the kernel may report its failure to nobody then.

        Returns:
            Whether nothing is open now.

        Raises:
            StorageOfflineError: the sync failed; the log is offline from now on.
        """
        if sync and not self._log.offline:
            self._log.sync_now()
        return self._log.rest()

    def close(self) -> None:
        """Sync, mark the log as closed in order, and give everything back.

        A round of syncs that is under way loses its meaning: `synced` and `sync_failed` need not
        be called for it.

        Raises:
            StorageError: the log is closed, but not in order; the next opening recovers it.
        """
        if self._closed:
            return
        try:
            if self._log.closes_offline():
                return
            self._log.sync_now()
            self._log.active.index.flush()
            self._log.write_checkpoint(clean=True)
        finally:
            self._closed = True
            self._log.syncs.cancel()
            self._log.syncs.close()
            self._log.active.close()

    def describe(self) -> LogDescription:
        """What there is, for `status`, retention and local readers."""
        return describe(self._log)
