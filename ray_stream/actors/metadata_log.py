"""Taking over the metadata log: lock, replay (or make), claim an epoch, sync, and only then serve.

Owns: that order (STORAGE sections 4 and 5). Refuses: Ray, threads; the simulator takes over in the
same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_stream.clock import Clock
from ray_stream.log import directory
from ray_stream.log.storage import Lock, Storage
from ray_stream.metadata.journal import MetadataJournal


@dataclass(slots=True)
class MetadataLog:
    """A journal that speaks for the cluster, and the lock that makes it the only one."""

    journal: MetadataJournal
    lock: Lock

    def close(self) -> None:
        """Close the log in order and give up the lock."""
        self.journal.close()
        self.lock.release()


def open_metadata(
    storage: Storage,
    clock: Clock,
    root: str,
    take_lock: Callable[[], Lock],
    *,
    boot_id: str,
    fresh: bool,
    directory_epochs: Sequence[int],
) -> MetadataLog:
    """Take over the metadata log in a broker directory.

    Args:
        storage: where it is.
        clock: for stamps.
        root: the broker directory.
        take_lock: takes the lock of the metadata log, or raises.
        boot_id: of the machine's current boot.
        fresh: a new cluster's: make the log when it is missing.
        directory_epochs: highest controller epochs in reachable identity files.

    Raises:
        DataDirInUseError: another controller has the lock.
        CorruptMetadataError: the log or the identity cannot be believed.
        StorageError: the log is missing and not to be made, or the system refused.
    """
    lock = take_lock()
    try:
        identity = directory.read_identity(storage, root)
        path = f"{root}/{directory.METADATA_NAME}"
        make = fresh and not storage.exists(path)
        opening = MetadataJournal.create if make else MetadataJournal.open
        journal = opening(storage, path, boot_id=boot_id, now_ms=clock.now_ms())
        if fresh and not journal.is_formatted:
            journal.format(
                identity.cluster_id, identity.directory_id, identity.host_id, clock.now_ms()
            )
        journal.claim([*directory_epochs, identity.controller_epoch], clock.now_ms())
        while (job := journal.sync_job()) is not None:
            job.run()
            journal.synced(job)
        epoch = journal.machine.image.controller_epoch
        directory.see_controller_epoch(storage, root, identity, epoch)
    except BaseException:
        lock.release()
        raise
    return MetadataLog(journal, lock)
