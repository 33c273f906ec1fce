"""Making written bytes durable: what is unsynced, and a round of syncs on another thread.

Owns: the synced place, the files that are not synced yet, and their order: a segment and the names
in the directory before anything in the next segment. Refuses: deciding when to sync, and what a
failure means for the log.

On another thread a job opens its own descriptors, so it shares nothing with the owner but strings,
and a log may be closed or cut while a job runs. No error is lost by that: the owner keeps every
unsynced file open, and the kernel reports a failed write-back once to each descriptor that was open
then, and to the first one that is opened later.
"""

from ray_stream.errors import StorageError, StorageFullError
from ray_stream.log.checkpoint import Place
from ray_stream.log.segment import Segment
from ray_stream.log.storage import Storage


class SyncJob:
    """The syncs after which everything in front of `end` is durable."""

    __slots__ = (
        "_active",
        "_cancelled",
        "_directory",
        "_paths",
        "_storage",
        "end",
        "names",
        "producers",
    )

    def __init__(
        self,
        storage: Storage,
        paths: tuple[str, ...],
        directory: str,
        end: Place,
        *,
        names: int,
        producers: bytes | None,
        active: Segment,
    ) -> None:
        """Describe a round.

        Args:
            storage: where the files are.
            paths: sealed segments with their companions, oldest first; the written one last.
            directory: where they are.
            end: what will be durable afterwards.
            names: new names in the directory, to be synced before the last file.
            producers: the encoded producer state at `end`, when a checkpoint will want it.
            active: the segment that is written to, its owner's; touched by `run_here` alone.
        """
        self._storage = storage
        self._paths = paths
        self._directory = directory
        self._cancelled = False
        self._active = active
        self.end = end
        self.names = names
        self.producers = producers

    def cancel(self) -> None:
        """Files of this job may be gone."""
        self._cancelled = True

    def run(self) -> None:
        """Do the syncs; may be called on any thread, once.

        Raises:
            StorageError: one failed; hand it to `PartitionLog.sync_failed`.
        """
        self._sync_what_comes_first()
        self._sync(self._paths[-1])

    def run_here(self) -> None:
        """As `run`, on the owner's thread and before anything else is done to the log.

        The written file is synced by its owner's descriptor, as by `SyncState.sync_now`: that was
        open when all of it was written, so no failure in between can have been told to another.
        """
        self._sync_what_comes_first()
        try:
            self._active.writing().sync()
        except StorageFullError as error:
            raise StorageError(str(error)) from error

    def _sync_what_comes_first(self) -> None:
        for path in self._paths[:-1]:
            self._sync(path)
        if self.names:
            self._storage.sync_directory(self._directory)

    def _sync(self, path: str) -> None:
        try:
            file = self._storage.open(path)
        except FileNotFoundError:
            if self._cancelled:
                return
            raise StorageError(f"{path} is gone, its bytes cannot be synced") from None
        except StorageFullError as error:
            raise StorageError(str(error)) from error
        try:
            file.sync()
        finally:
            file.close()


class SyncState:
    """What of a log is durable, and what is on its way."""

    __slots__ = (
        "_directory",
        "_storage",
        "_unsynced",
        "captured",
        "job",
        "lost",
        "new_names",
        "place",
    )

    def __init__(self, storage: Storage, directory: str, place: Place) -> None:
        self._storage = storage
        self._directory = directory
        self._unsynced: list[Segment] = []
        self.place = place
        """Everything in front of it is durable."""
        self.new_names = 0
        """Segments whose names are not durable yet."""
        self.job: SyncJob | None = None
        self.captured: tuple[Place, bytes] | None = None
        """Producer state at a durable place, taken when it was written."""
        self.lost = False
        """A sync failed: what is behind `place` may look good and be gone."""

    @property
    def unsynced_segments(self) -> int:
        """Sealed segments that are not durable yet, and so open."""
        return len(self._unsynced)

    def rolled(self, old: Segment, end: Place) -> None:
        """`old` was sealed, and a new segment begins at `end`."""
        self.new_names += 1
        if self.place.offset < end.offset:
            self._unsynced.append(old)
        else:
            old.close()
            self.place = end

    def begin(self, active: Segment, end: Place, producers: bytes | None) -> SyncJob:
        """Start a round for everything written in front of `end`."""
        paths = []
        for segment in self._unsynced:
            paths.append(segment.path)
            paths += [path for path in segment.companions() if self._storage.exists(path)]
        if self.new_names and active.base_offset:
            paths.append(active.path_of("snapshot"))
        self.job = SyncJob(
            self._storage,
            (*paths, active.path),
            self._directory,
            end,
            names=self.new_names,
            producers=producers,
            active=active,
        )
        return self.job

    def ended(self, job: SyncJob) -> None:
        """A round ended well; of one that was cancelled nobody wants to know."""
        if job is not self.job:
            return
        self.job = None
        self.new_names -= job.names
        self.place = job.end
        # One that was sealed while the round ran may be covered too.
        while self._unsynced and self._unsynced[0].sealed_at <= self.place.offset:
            self._unsynced.pop(0).close()
        if job.producers is not None:
            self.captured = (job.end, job.producers)

    def sync_now(self, active: Segment, end: Place) -> None:
        """The same at once, on the owner's own descriptors; a round under way loses its meaning."""
        self.cancel()
        for segment in self._unsynced:
            segment.writing().sync()
        if self.new_names:
            for segment in (*self._unsynced, active):
                self.sync_snapshot(segment)
            self._storage.sync_directory(self._directory)
        if self.place.offset < end.offset:
            active.writing().sync()
        for segment in self._unsynced:
            segment.close()
        self._unsynced.clear()
        self.new_names = 0
        self.place = end

    def sync_snapshot(self, segment: Segment) -> None:
        """Make the producer state at a segment's base durable."""
        path = segment.path_of("snapshot")
        if self._storage.exists(path):
            file = self._storage.open(path)
            try:
                file.sync()
            finally:
                file.close()

    def cancel(self) -> None:
        """A round under way means nothing any more."""
        if self.job is not None:
            self.job.cancel()
            self.job = None

    def truncated(self, place: Place) -> None:
        """Everything from `place` on was cut off."""
        self._unsynced = [one for one in self._unsynced if one.base_offset < place.segment]
        self.place = min(self.place, place)
        if self.captured is not None and self.captured[0].offset > place.offset:
            self.captured = None

    def close(self) -> None:
        """Give the descriptors back."""
        for segment in self._unsynced:
            segment.close()
