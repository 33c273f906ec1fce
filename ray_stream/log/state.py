"""What an open log knows, and the few steps that every operation on it shares.

Owns: one log's ends, segments, epochs and producers in memory; the checkpoint written from them;
the ways offline. Refuses: the rules of appending, reading, cutting (`partition_log`, `trim`).
"""

import contextlib

from ray_stream.errors import (
    OutcomeUnknownError,
    RayStreamError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
)
from ray_stream.log.checkpoint import Checkpoint, Place, write_checkpoint
from ray_stream.log.layout import split_left, write_snapshot
from ray_stream.log.offline import OfflineMarker, write_marker
from ray_stream.log.options import LogOptions
from ray_stream.log.reader import LogReader
from ray_stream.log.recovery import Recovered
from ray_stream.log.segment import Segment
from ray_stream.log.storage import Storage
from ray_stream.log.sync import SyncState
from ray_stream.types import NO_TIMESTAMP, Durability


class LogState:
    """One open log, as `partition_log` and `trim` work on it."""

    __slots__ = (
        "_boot_id",
        "_opened_offline",
        "capture_wanted",
        "directory",
        "end",
        "epoch_needed",
        "epochs",
        "left",
        "now_ms",
        "offline",
        "on_disk",
        "options",
        "producers",
        "readable_once",
        "reader",
        "rolled",
        "segments",
        "start",
        "storage",
        "syncs",
        "unrecorded",
    )

    def __init__(
        self, storage: Storage, directory: str, options: LogOptions, boot_id: str, found: Recovered
    ) -> None:
        """Args: found: what opening the log gave."""
        self._boot_id = boot_id
        self._opened_offline = bool(found.report.offline)
        self.storage = storage
        self.directory = directory
        self.options = options
        self.segments = found.segments
        """Oldest first; the last one is written to."""
        self.left = found.left
        """Segments below the log start whose files are still there."""
        self.start = found.checkpoint.log_start
        self.end = found.end
        """Behind the last batch that was written."""
        self.syncs = SyncState(storage, directory, found.end)
        self.syncs.lost = self._opened_offline
        self.reader = LogReader(options, found.segments, found.checkpoint.quarantine)
        self.epochs = found.epochs
        self.producers = found.producers
        self.on_disk = found.checkpoint
        """The checkpoint as it was written last."""
        self.offline = found.report.offline
        """Why nothing can be appended; empty when it can."""
        self.epoch_needed = found.report.needs_new_epoch
        """Something was cut off or lost: a new leader epoch must begin before the next append."""
        self.unrecorded: OfflineMarker | None = None
        """What a failed sync should have left beside the data, and did not."""
        self.readable_once = found.end.offset
        """What was readable stays so, whatever becomes of the settings or of the log."""
        self.capture_wanted = True
        """Whether the next sync should bring the producer state for a checkpoint."""
        self.now_ms = 0
        """The wall clock of the last append."""
        self.rolled = found.report.segments_scanned > 0
        """Whether the checkpoint on the disk is a segment or more behind."""

    @property
    def active(self) -> Segment:
        """The segment that is written to."""
        return self.segments[-1]

    @property
    def readable_end(self) -> int:
        """As `PartitionLog.readable_end`."""
        if self.options.durability == Durability.REPLICATED and not self.offline:
            return self.end.offset
        return max(self.syncs.place.offset, self.readable_once)

    @property
    def checkpoint_due(self) -> bool:
        """As `PartitionLog.checkpoint_due`."""
        return self.rolled or self.reader.damage_found

    def roll(self, now_ms: int | None) -> None:
        """Close the written segment and begin a new one.

        Costs no sync: the next `SyncJob` syncs the old segment and the names first.
        """
        if now_ms is not None:
            self.producers.expire(now_ms=now_ms, expiry_ms=self.options.producer_expiry_ms)
        old = self.active
        new = Segment(self.storage, self.directory, self.end.offset)
        write_snapshot(self.storage, new, self.producers)
        new.create()
        old.seal(new.base_offset, self.options.index_interval_bytes)
        self.segments.append(new)
        self.end = Place(new.base_offset, new.base_offset, 0)
        self.syncs.rolled(old, self.end)
        self.rolled = self.capture_wanted = True

    def sync_now(self) -> None:
        """Make everything durable; raises `StorageOfflineError`, then the log is offline."""
        try:
            self.syncs.sync_now(self.active, self.end)
        except (StorageError, StorageFullError) as error:
            self.sync_lost(error)
            raise self.offline_error() from error

    def rest(self) -> bool:
        """As `PartitionLog.rest`, without a sync."""
        if self.syncs.place != self.end or self.syncs.unsynced_segments:
            return False
        self.active.close()
        return True

    def producers_to_capture(self) -> bytes | None:
        """The producer state at the end, once for each checkpoint: it may fall into a busy time."""
        if not self.capture_wanted:
            return None
        self.capture_wanted = False
        return self.producers.encode(self.end.offset)

    # --- the checkpoint --------------------------------------------------------------------------

    def write_checkpoint(self, *, clean: bool = False) -> None:
        """Record what is durable; raises `StorageError`, then the old checkpoint holds."""
        durable = self._durable_place()
        segment = next((one for one in self.segments if one.base_offset == durable.segment), None)
        interval = self.options.index_interval_bytes
        producers_at, producers = self._durable_producers(durable)
        if producers_at is None and segment is not None and self.syncs.new_names:
            self.syncs.sync_snapshot(segment)
            self.storage.sync_directory(self.directory)
        checkpoint = Checkpoint(
            log_start=self.start,
            durable=durable,
            generation=segment.generation if segment else 0,
            first_timestamp=segment.first_timestamp if segment else NO_TIMESTAMP,
            max_timestamp=segment.greatest_time(interval) if segment else NO_TIMESTAMP,
            leader_epoch=self.epochs.claimed,
            epochs=self.epochs.entries,
            quarantine=self.reader.quarantine,
            boot_id=self._boot_id,
            clean=clean,
            epoch_needed=self.epoch_needed,
            producers_at=producers_at,
            producers=producers,
        )
        write_checkpoint(self.storage, self.directory, checkpoint)
        self.on_disk = checkpoint

    def _durable_place(self) -> Place:
        """At the end of a sealed segment it is the beginning of the next, which stays longer."""
        place = self.syncs.place
        begins = any(one.base_offset == place.offset for one in self.segments)
        return Place(place.offset, place.offset, 0) if begins else place

    def _durable_producers(self, durable: Place) -> tuple[Place | None, bytes]:
        """The newest producer state at or in front of the durable place that can be gone on from.

        The batches behind it must still be in the log; None falls back to a segment's snapshot.
        """
        if durable.offset == self.end.offset and not self._opened_offline:
            return durable, self.producers.encode(durable.offset)
        first = split_left(self.segments, self.start)[1][0].base_offset
        known = [] if self.syncs.captured is None else [self.syncs.captured]
        if self.on_disk.producers_at is not None:
            known.append((self.on_disk.producers_at, self.on_disk.producers))
        usable = [
            one for one in known if one[0].offset <= durable.offset and one[0].segment >= first
        ]
        return max(usable, default=(None, b""), key=lambda one: one[0].offset)

    # --- the ways offline ------------------------------------------------------------------------

    def go_offline(self, reason: str) -> StorageOfflineError:
        """Until the log is opened again: a file may not be what we believe it is."""
        self.readable_once = self.readable_end
        self.offline = reason
        return self.offline_error()

    def sync_lost(self, error: RayStreamError) -> RayStreamError:
        """Until it is repaired: what is behind the durable place may look good and be gone."""
        readable = self.readable_end
        offline = self.go_offline(f"a sync failed: {error}")
        self.syncs.lost = True
        self.syncs.cancel()
        marker = OfflineMarker(self.offline, self.syncs.place, readable)
        try:
            write_marker(self.storage, self.directory, marker)
        except (StorageError, StorageFullError) as second:
            # The disk refuses everything. Should this process die too, recovery drops the cache
            # before it believes anything, so the lost bytes are noticed all the same. It will not
            # know, though, what nobody was promised, and keeps of that what is whole.
            self.unrecorded = marker
            self.go_offline(f"{self.offline} (nor could that be recorded: {second})")
            return OutcomeUnknownError(
                f"{self.options.name} is offline: {self.offline}; what was written before may be "
                "there when it is opened next, or not"
            )
        return offline

    def closes_offline(self) -> bool:
        """Whether it is offline; what could not be recorded of that has one more chance."""
        if self.unrecorded is not None:
            with contextlib.suppress(StorageError, StorageFullError):
                write_marker(self.storage, self.directory, self.unrecorded)
                self.unrecorded = None
        return bool(self.offline)

    def offline_error(self) -> StorageOfflineError:
        """For everyone who wants to append."""
        return StorageOfflineError(
            f"{self.options.name} is offline: {self.offline}; what was durable can be read, "
            "`ray-stream repair` brings it back"
        )
