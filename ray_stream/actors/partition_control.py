"""What a broker asks of a partition host: prepare, lead, alter, release; and regular checkpoints.

Owns: the order in which a partition comes up and goes down (`rpc.hosting`), its lock, and when a
checkpoint is due. Refuses: requests of clients (`PartitionHost`), deciding what to serve.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ray_stream.actors.hosted import Hosted, log_options
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.clock import Clock
from ray_stream.errors import RayStreamError, StorageError, StorageOfflineError
from ray_stream.log import directory
from ray_stream.log.partition_log import PartitionLog, delete_log
from ray_stream.log.storage import Lock, Storage
from ray_stream.metadata.commands import AssignedPartition, PartitionKey, PartitionServed
from ray_stream.rpc.hosting import (
    AlterPartitions,
    LeadPartitions,
    PartitionsLed,
    PartitionsPrepared,
    PartitionsReleased,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.services import Reply

LOG = logging.getLogger(__name__)
RECOVERY_BYTES = 64 * 1024 * 1024
"""What is written behind all checkpoints of a host, and read again after a crash, is about this."""
CHECKPOINTS_AT_ONCE = 2
"""Each costs a few syncs, for which clients wait."""
CHECKPOINT_PAUSE_MS = 10

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


class Locking(Protocol):
    """Takes the lock of one partition, or raises `DataDirInUseError`."""

    def __call__(self, storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
        """The lock, held."""
        ...


class Spread(Protocol):
    """Does the same to many logs, each on one thread at a time: most of it waits for the disk."""

    def __call__(self, work: Callable[[ItemT], OutcomeT], items: Sequence[ItemT]) -> list[OutcomeT]:
        """The outcomes, in the order of the items."""
        ...


class PartitionControl:
    """The broker's side of one partition host. Runs on the host's thread."""

    def __init__(
        self,
        host: PartitionHost,
        storage: Storage,
        clock: Clock,
        *,
        boot_id: str,
        interval_ms: int,
        locking: Locking,
        spread: Spread,
        recovery_bytes: int = RECOVERY_BYTES,
    ) -> None:
        """Make the control of a host.

        Args:
            host: what it controls.
            storage: where the directories are.
            clock: for checkpoints.
            boot_id: of the machine's current boot.
            interval_ms: how often logs are looked at: a log that is idle since the last look, was
                rolled, or has its share of `recovery_bytes` behind its checkpoint gets a new one.
            locking: how a partition's lock is taken.
            spread: opens, begins and closes many logs at once.
            recovery_bytes: see `interval_ms`; 0: each log that was written to gets one each time.
        """
        self._host = host
        self._storage = storage
        self._clock = clock
        self._boot_id = boot_id
        self._locking = locking
        self._spread = spread
        self._interval_ms = interval_ms
        self._recovery_bytes = recovery_bytes
        self._next_look_ms = clock.monotonic_ms() + interval_ms
        self._next_checkpoint_ms = self._next_look_ms
        self._due: dict[PartitionKey, Hosted] = {}
        """Logs that wait for a checkpoint."""

    def prepare(self, request: PreparePartitions, reply: Reply[PartitionsPrepared]) -> None:
        """Lock and recover; a partition that cannot be opened gets a reason, the others go on."""
        new = [
            spec
            for spec in request.partitions
            if (spec.topic_id, spec.partition) not in self._host.partitions
        ]
        opened = self._spread(
            lambda spec: self._open(spec, request.directories.get(spec.directory_id)), new
        )
        reasons: dict[PartitionKey, str] = {}
        for spec, outcome in zip(new, opened, strict=True):
            key = (spec.topic_id, spec.partition)
            if isinstance(outcome, Hosted):
                self._host.partitions[key] = outcome
            else:
                reasons[key] = outcome
        results = [
            (spec.topic_id, spec.partition, reasons.get((spec.topic_id, spec.partition), ""))
            for spec in request.partitions
        ]
        reply(PartitionsPrepared(results))

    def _open(self, spec: AssignedPartition, root: str | None) -> Hosted | str:
        """The opened partition, or why it cannot be opened."""
        if root is None:
            return f"{StorageError.__name__}: {_not_held(spec.directory_id)}"
        try:
            lock = self._locking(self._storage, root, spec.topic_id, spec.partition)
        except RayStreamError as error:
            return f"{type(error).__name__}: {error}"
        try:
            path = directory.partition_path(root, spec.topic_id, spec.partition)
            log = self._open_log(spec, path)
            if not log.offline:
                return Hosted(spec, log, lock, path)
            reason = (
                f"{StorageOfflineError.__name__}: {log.offline}; stop the cluster, then "
                "`ray-stream repair` reads the partition anew from the disk"
            )
        except RayStreamError as error:
            reason = f"{type(error).__name__}: {error}"
        except BaseException:
            lock.release()
            raise
        lock.release()
        return reason

    def _open_log(self, spec: AssignedPartition, path: str) -> PartitionLog:
        options = log_options(spec)
        now_ms = self._clock.now_ms()
        # Before the first claim nothing was ever acknowledged, so making the log loses nothing;
        # after it, a missing log is a loss that nobody may paper over.
        if spec.never_led and not self._storage.exists(path):
            log = PartitionLog.create(
                self._storage, path, options, boot_id=self._boot_id, now_ms=now_ms
            )
            directory.write_partition_hint(
                self._storage, path, spec.topic, spec.partition_count, spec.config
            )
            return log
        return PartitionLog.open(self._storage, path, options, boot_id=self._boot_id, now_ms=now_ms)

    def lead(self, request: LeadPartitions, reply: Reply[PartitionsLed]) -> None:
        """Begin leader epochs that are durable at the controller already."""
        for topic_id, number, _ in request.partitions:
            hosted = self._host.partitions.get((topic_id, number))
            if hosted is not None:
                self._host.refuse_staged(hosted)
        reply(PartitionsLed(self._spread(self._begin, request.partitions)))

    def _begin(self, wanted: tuple[str, int, int]) -> PartitionServed:
        topic_id, number, leader_epoch = wanted
        hosted = self._host.partitions.get((topic_id, number))
        if hosted is None:
            reason = "it was not prepared here"
            return PartitionServed(topic_id, number, leader_epoch, -1, reason)
        try:
            hosted.log.begin_epoch(leader_epoch)
        except RayStreamError as error:
            return _served(hosted, f"{type(error).__name__}: {error}")
        hosted.leading = True
        return _served(hosted, "")

    def alter(self, request: AlterPartitions, reply: Reply[PartitionsLed]) -> None:
        """Take new settings; answered when they hold: a change to `fsync` synced the log."""
        changed = [
            (hosted, spec)
            for spec in request.partitions
            if (hosted := self._host.partitions.get((spec.topic_id, spec.partition))) is not None
        ]
        missing = len(changed)
        if not missing:
            reply(PartitionsLed([]))

        def confirm() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                reply(PartitionsLed([_served(one, one.log.offline) for one, _ in changed]))

        for hosted, spec in changed:
            hosted.spec = spec
            end_offset = hosted.log.set_options(log_options(spec))
            hosted.altered.append((end_offset, confirm))
            self._host.changed(hosted)

    def release(self, request: ReleasePartitions, reply: Reply[PartitionsReleased]) -> None:
        """Close logs and give up their locks; remove the files of those to be deleted."""
        for key in request.partitions:
            hosted = self._host.partitions.pop(key, None)
            if hosted is not None:
                hosted.leading = False
                self._host.dismiss(hosted)
                _close(hosted)
        kept = self._delete(request) if request.delete else {}
        if kept and len(kept) == len(request.placed):
            reply(next(iter(kept.values())))
        else:
            released = [key for key in request.partitions if tuple(key) not in kept]
            reply(PartitionsReleased(released))

    def _delete(self, request: ReleasePartitions) -> dict[PartitionKey, RayStreamError]:
        """Remove files; returns whose could not be removed. The broker asks for those again."""
        kept: dict[PartitionKey, RayStreamError] = {}
        for topic_id, number, directory_id in request.placed:
            root = request.directories.get(directory_id)
            if root is None:
                kept[topic_id, number] = _not_held(directory_id)
                continue
            try:
                delete_log(self._storage, directory.partition_path(root, topic_id, number))
            except RayStreamError as refused:
                kept[topic_id, number] = refused
        for (topic_id, number), why in kept.items():
            LOG.warning("the files of %s-%d cannot be removed: %s", topic_id, number, why)
        return kept

    def served(self) -> list[PartitionServed]:
        """What is led here."""
        return [
            _served(one, one.log.offline) for one in self._host.partitions.values() if one.leading
        ]

    def tick(self) -> None:
        """Sync what nobody waits for; write the checkpoints that are due, a few at a time."""
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._next_look_ms:
            self._next_look_ms = now_ms + self._interval_ms
            self._look()
        if self._due and now_ms >= self._next_checkpoint_ms:
            self._next_checkpoint_ms = now_ms + CHECKPOINT_PAUSE_MS
            for key in list(self._due)[:CHECKPOINTS_AT_ONCE]:
                hosted = self._due.pop(key)
                if self._host.partitions.get(key) is hosted:
                    _checkpoint(hosted)

    def _look(self) -> None:
        share = self._recovery_bytes // max(1, len(self._host.partitions))
        for key, hosted in self._host.partitions.items():
            log = hosted.log
            if not log.unrecorded_bytes and not log.checkpoint_due:
                continue
            if log.synced_end < log.written_end:
                self._host.sync_in_background(hosted)
            is_idle = hosted.looked_end == log.written_end
            hosted.looked_end = log.written_end
            if is_idle or log.checkpoint_due or log.unrecorded_bytes >= share:
                self._due[key] = hosted

    def close(self) -> None:
        """Close every log, cleanly where that is possible."""
        for hosted in self._host.partitions.values():
            hosted.leading = False
            self._host.dismiss(hosted)
        self._spread(_close, list(self._host.partitions.values()))
        self._host.partitions.clear()

    def next_deadline_ms(self) -> int:
        """When `tick` has something to do, on the monotonic clock."""
        if self._due:
            return min(self._next_look_ms, self._next_checkpoint_ms)
        return self._next_look_ms


def _not_held(directory_id: str) -> StorageError:
    return StorageError(f"the data directory {directory_id} is not held by this node any more")


def _served(hosted: Hosted, reason: str) -> PartitionServed:
    spec = hosted.spec
    return PartitionServed(
        spec.topic_id,
        spec.partition,
        hosted.log.leader_epoch,
        spec.config_version,
        reason,
        sync_failed=bool(hosted.log.offline),
    )


def _checkpoint(hosted: Hosted) -> None:
    synced_end = hosted.log.synced_end
    if hosted.checkpointed_end != synced_end or hosted.log.checkpoint_due:
        try:
            hosted.log.checkpoint()
            hosted.checkpointed_end = synced_end
        except RayStreamError as refused:
            LOG.warning("%s keeps its old checkpoint, tried again later: %s", hosted.name, refused)


def _close(hosted: Hosted) -> None:
    """Give back everything, also where the disk refuses to have the log closed in order."""
    try:
        hosted.log.close()
    except RayStreamError as refused:
        LOG.warning("%s is recovered when it is opened next: %s", hosted.name, refused)
    finally:
        hosted.lock.release()
