"""The metadata machine on its log.

Owns: the log's name and options, its first fact, and the claim of a controller epoch. Refuses:
replay, appending, snapshots (`journal`), deciding (`MetadataMachine`), threads.

The log's leader epoch is the controller epoch, so a controller that was replaced cannot append.
"""

from collections.abc import Iterable

from ray_stream.config import MiB
from ray_stream.errors import ControllerNotAvailableError, InvalidArgumentError
from ray_stream.journal.journal import SNAPSHOT_BYTES, SNAPSHOT_RECORDS, Journal, Pending
from ray_stream.journal.snapshots import Snapshots
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import Storage
from ray_stream.metadata import records as codec
from ray_stream.metadata.commands import Command, Response
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.records import ControllerClaimed, Record
from ray_stream.types import Durability

TOPIC = "__metadata"
NAME = "metadata log"

OPTIONS = LogOptions(
    topic=TOPIC,
    topic_id="0" * 32,
    partition=0,
    durability=Durability.FSYNC,
    segment_bytes=SNAPSHOT_BYTES,
    segment_ms=2**53,
    index_interval_bytes=64 * 1024,
    batch_bytes_max=64 * MiB,
    log_append_time=False,
)
"""How the metadata log is kept."""


class MetadataJournal(Journal[Command, Record, Response]):
    """The controller's mind and its log."""

    def __init__(
        self,
        log: PartitionLog,
        machine: MetadataMachine,
        snapshots: Snapshots,
        *,
        snapshot_records: int = SNAPSHOT_RECORDS,
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        """Use `create` or `open`, or call `replay` before anything else; args as `Journal`."""
        super().__init__(
            log,
            machine,
            codec,
            snapshots,
            name=NAME,
            snapshot_records=snapshot_records,
            snapshot_bytes=snapshot_bytes,
        )
        self.machine = machine
        """The mind; only its queries are for others."""

    @classmethod
    def create(
        cls, storage: Storage, directory: str, *, boot_id: str, now_ms: int
    ) -> "MetadataJournal":
        """A new log in a new directory; `format` it next.

        Raises:
            StorageError: the directory exists already, or the system refused.
        """
        log = PartitionLog.create(storage, directory, OPTIONS, boot_id=boot_id, now_ms=now_ms)
        return cls(log, MetadataMachine(), Snapshots(storage, directory))

    @classmethod
    def open(
        cls, storage: Storage, directory: str, *, boot_id: str, now_ms: int
    ) -> "MetadataJournal":
        """The log that is there, replayed; `claim` it next.

        Raises:
            CorruptMetadataError, DataDirVersionError: it cannot be believed as it is.
            StorageOfflineError: a sync failed in it; `ray-stream repair` brings it back.
            StorageError: it is missing, or the system refused.
        """
        log = PartitionLog.open(storage, directory, OPTIONS, boot_id=boot_id, now_ms=now_ms)
        journal = cls(log, MetadataMachine(), Snapshots(storage, directory))
        journal.replay()
        return journal

    @property
    def is_formatted(self) -> bool:
        """Whether the log has its first fact."""
        return bool(self.machine.image.cluster_id)

    def format(
        self, cluster_id: str, directory_id: str, host_id: str, now_ms: int
    ) -> Pending[None]:
        """Write the first fact of a new cluster; `claim` next.

        Args:
            cluster_id: of the identity file.
            directory_id: the new directory that holds this log.
            host_id: where it is.
            now_ms: the wall clock.

        Raises:
            InvalidArgumentError: the log is not empty.
        """
        records = self.machine.format_cluster(cluster_id, directory_id, host_id, now_ms)
        if self.written_end:
            raise InvalidArgumentError("this metadata log is not empty: it cannot be formatted")
        # The next one, should an earlier attempt have ended before its fact was durable.
        self.begin_epoch(self._log.leader_epoch + 1)
        self.append(records, now_ms)
        return Pending(None, self.written_end)

    def claim(self, directory_epochs: Iterable[int], now_ms: int) -> Pending[int]:
        """Take over in a new controller epoch, which is the answer.

        Args:
            directory_epochs: the highest epoch in each reachable identity file.
            now_ms: the wall clock.

        Raises:
            StorageError, StorageOfflineError: the journal is broken.
        """
        # A controller that died between beginning its epoch and claiming it left only the former.
        records = self.machine.claim_controller([*directory_epochs, self._log.leader_epoch])
        (claimed,) = (record for record in records if isinstance(record, ControllerClaimed))
        self.begin_epoch(claimed.epoch)
        self.append(records, now_ms)
        self.machine.begin()
        return Pending(claimed.epoch, self.written_end)

    def refuse_if_broken(self) -> None:
        """Raise `ControllerNotAvailableError` when only a successor can go on."""
        if self._broken:
            raise ControllerNotAvailableError(
                f"this controller's journal is broken ({self._broken}): replay it in a new one"
            )
