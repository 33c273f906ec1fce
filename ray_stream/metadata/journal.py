"""The metadata machine on one of our own logs.

Owns: facts to batches and back, replay, the claim of a controller epoch, and snapshots that let
the log be cut. Refuses: deciding (`MetadataMachine`), threads, and when to sync: the owner runs
`sync_job` elsewhere and hands it back.

Facts are applied as they are appended; an answer may leave once `synced_end` has reached its
`end_offset`, and so may anything else that was looked at in the machine meanwhile (take
`written_end` then). The log's leader epoch is the controller epoch, so a controller that was
replaced cannot append. There is no way back from a failed append, sync or epoch: the journal is
broken, and its successor replays. Only a full disk is an ordinary refusal: nothing was written
and nothing applied.

A snapshot is taken of a state when it is written and kept once that state is durable. The log in
front of the older of the two snapshots is then let go.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import pyarrow as pa

from ray_stream.config import MiB
from ray_stream.errors import (
    ControllerNotAvailableError,
    CorruptBatchError,
    CorruptMetadataError,
    CorruptRecordError,
    InvalidArgumentError,
    RayStreamError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
)
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import Buffer, Storage
from ray_stream.log.sync import SyncJob
from ray_stream.metadata.commands import Command, Response
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.liveness import Sign
from ray_stream.metadata.records import ControllerClaimed, Record, decode_record, encode_record
from ray_stream.metadata.snapshots import Snapshot, Snapshots, encode_snapshot
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.records.reader import decode_columns
from ray_stream.types import Durability

TOPIC = "__metadata"
SNAPSHOT_RECORDS = 10_000
SNAPSHOT_BYTES = 16 * MiB
"""A snapshot is due after so many records or bytes, whichever comes first."""
_READ_BYTES = 4 * MiB

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

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Pending(Generic[AnswerT]):
    """An answer that may leave once the log is synced up to `end_offset`."""

    response: AnswerT
    end_offset: int


class Journal:
    """One machine and its log. Everything but `SyncJob.run` belongs to one owner's thread."""

    def __init__(
        self,
        log: PartitionLog,
        machine: MetadataMachine,
        snapshots: Snapshots,
        *,
        snapshot_records: int = SNAPSHOT_RECORDS,
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        """Use `create` or `open`, or call `replay` before anything else.

        Args:
            log: open, its lock held by the caller.
            machine: empty.
            snapshots: in the log's directory.
            snapshot_records: a snapshot is due after so many records,
            snapshot_bytes: or so many bytes.
        """
        self._log = log
        self._snapshots = snapshots
        self._snapshot_records = snapshot_records
        self._snapshot_bytes = snapshot_bytes
        self._records = 0
        self._bytes = 0
        self._taken: Snapshot | None = None
        self._broken = ""
        self.machine = machine
        """The mind; only its queries are for others."""
        self.damaged_snapshots: list[str] = []
        """What `replay` found damaged and did without, for the caller to tell."""
        self.snapshot_error: RayStreamError | None = None
        """Why the last snapshot was not kept; the log stays longer then, and nothing is lost."""

    @classmethod
    def create(cls, storage: Storage, directory: str, *, boot_id: str, now_ms: int) -> "Journal":
        """A new log in a new directory; `format` it next.

        Raises:
            StorageError: the directory exists already, or the system refused.
        """
        log = PartitionLog.create(storage, directory, OPTIONS, boot_id=boot_id, now_ms=now_ms)
        return cls(log, MetadataMachine(), Snapshots(storage, directory))

    @classmethod
    def open(cls, storage: Storage, directory: str, *, boot_id: str, now_ms: int) -> "Journal":
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

    # --- ends ------------------------------------------------------------------------------------

    @property
    def written_end(self) -> int:
        """What the machine shows is in the log up to here."""
        return self._log.written_end

    @property
    def synced_end(self) -> int:
        """What is durable is in the log up to here."""
        return self._log.synced_end

    @property
    def is_broken(self) -> bool:
        """Whether the machine must be dropped: only a new journal's replay goes on."""
        return bool(self._broken)

    @property
    def is_formatted(self) -> bool:
        """Whether the log has its first fact."""
        return bool(self.machine.image.cluster_id)

    # --- beginnings ------------------------------------------------------------------------------

    def replay(self) -> None:
        """Rebuild the machine's image from the newest snapshot and the log behind it.

        Raises:
            CorruptMetadataError: a gap, damage, or a log that ends before its snapshot; nothing is
                guessed in its place.
            StorageOfflineError: a sync failed in this log.
        """
        if self._log.offline:
            raise StorageOfflineError(
                f"the metadata log is offline: {self._log.offline}; `ray-stream repair` brings it "
                "back"
            )
        self._snapshots.sweep()
        offset = self._load_snapshot()
        while offset < self._log.written_end:
            offset = self._replay_from(offset)

    def _load_snapshot(self) -> int:
        """Apply the newest snapshot that is whole; returns where to read on."""
        for end_offset in reversed(self._snapshots.end_offsets()):
            if end_offset > self._log.written_end:
                raise CorruptMetadataError(
                    f"the metadata log ends at {self._log.written_end}, and its snapshot stands "
                    f"for everything up to {end_offset}: durable metadata is missing; restore the "
                    "directory, and start nothing in its place"
                )
            try:
                records = self._snapshots.load(end_offset)
            except CorruptMetadataError as error:
                self.damaged_snapshots.append(str(error))
                continue
            for record in records:
                self.machine.apply(record)
            return end_offset
        if self._log.start_offset:
            raise CorruptMetadataError(
                f"the metadata log begins at {self._log.start_offset}, and no snapshot of what was "
                f"before is whole ({'; '.join(self.damaged_snapshots) or 'there is none'}); "
                "restore the directory, and start nothing in its place"
            )
        return 0

    def _replay_from(self, offset: int) -> int:
        try:
            read = self._log.read(offset, bytes_max=_READ_BYTES, end_offset=self._log.written_end)
            for batch in read.batches:
                offset = self._replay_batch(batch, offset)
        except (CorruptRecordError, CorruptBatchError) as error:
            raise CorruptMetadataError(f"the metadata log is damaged: {error}") from error
        if offset != read.next_offset or not read.batches:
            raise CorruptMetadataError(f"the metadata log cannot be read on from {offset}")
        return offset

    def _replay_batch(self, batch: Buffer, offset: int) -> int:
        header = decode_header(batch)
        if header.base_offset != offset:
            raise CorruptMetadataError(
                f"the metadata log goes on at {header.base_offset} instead of {offset}"
            )
        columns = decode_columns(header, memoryview(batch)[HEADER_BYTES:])
        values = columns.column("value").to_pylist() if header.record_count else []
        for value in values:
            self.machine.apply(decode_record(value or b""))
        self._count(len(values), header.batch_bytes)
        return header.next_offset

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
        if self._log.written_end:
            raise InvalidArgumentError("this metadata log is not empty: it cannot be formatted")
        # The next one, should an earlier attempt have ended before its fact was durable.
        epoch = self._log.leader_epoch + 1
        self._begin_epoch(epoch)
        self._append(records, epoch, now_ms)
        return Pending(None, self._log.written_end)

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
        self._begin_epoch(claimed.epoch)
        self._append(records, claimed.epoch, now_ms)
        self.machine.begin()
        return Pending(claimed.epoch, self._log.written_end)

    def _begin_epoch(self, epoch: int) -> None:
        self._refuse_if_broken()
        try:
            self._log.begin_epoch(epoch)
        except RayStreamError as error:
            self._broken = f"epoch {epoch} could not begin: {error}"
            raise

    # --- commands --------------------------------------------------------------------------------

    def submit(self, command: Command, now_ms: int) -> Pending[Response]:
        """Decide, append, apply.

        Raises:
            ControllerNotAvailableError: not claimed, or broken.
            StorageFullError: the disk is full; nothing happened.
            RayStreamError: refused by the command's rules; nothing happened. When `is_broken` holds
                then, the append failed, and this journal is of no use any more.
        """
        self._refuse_if_broken()
        resolution = self.machine.decide(command, now_ms)
        self._append(
            resolution.records, self.machine.image.controller_epoch, now_ms, resolution.signs
        )
        return Pending(resolution.response, self._log.written_end)

    def _append(
        self, records: Sequence[Record], epoch: int, now_ms: int, signs: Sequence[Sign] = ()
    ) -> None:
        size = self._write(records, epoch, now_ms) if records else 0
        # Should this not come to its end, machine and log differ.
        self._broken = "what was appended could not be applied"
        for record in records:
            self.machine.apply(record)
        for sign in signs:
            self.machine.notice(sign)
        self._broken = ""
        self._count(len(records), size)
        self._take_snapshot_if_due()

    def _write(self, records: Sequence[Record], epoch: int, now_ms: int) -> int:
        values = [encode_record(record) for record in records]
        columns = RecordColumns(value=_binary_array(values), base_timestamp=now_ms)
        batch = b"".join(build_batch(columns))
        (outcome,) = self._log.append([batch], leader_epoch=epoch, now_ms=now_ms)
        if isinstance(outcome, RayStreamError):
            if not isinstance(outcome, StorageFullError):
                self._broken = f"an append failed: {outcome}"
            raise outcome
        return len(batch)

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise ControllerNotAvailableError(
                f"this controller's journal is broken ({self._broken}): replay it in a new one"
            )

    # --- syncs -----------------------------------------------------------------------------------

    def sync_job(self) -> SyncJob | None:
        """What to sync now, on any thread; None: nothing, or a round is under way."""
        return self._log.sync_job()

    def synced(self, job: SyncJob) -> None:
        """A round has ended well."""
        self._log.synced(job)
        self._keep_snapshot_if_durable()

    def sync_failed(self, job: SyncJob, error: StorageError) -> StorageOfflineError:
        """A round failed: the journal is broken, and the log offline until it is repaired."""
        offline = self._log.sync_failed(job, error)
        self._broken = f"a sync failed: {error}"
        return offline

    def close(self) -> None:
        """Sync and close the log in order; raises `StorageError`."""
        self._log.close()

    # --- snapshots -------------------------------------------------------------------------------

    def take_snapshot(self) -> None:
        """Stand in for the log as it is now; kept as soon as all of it is durable."""
        self._refuse_if_broken()
        self._taken = encode_snapshot(self.machine.snapshot(), self._log.written_end)
        self._records = self._bytes = 0
        self._keep_snapshot_if_durable()

    def _count(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size

    def _take_snapshot_if_due(self) -> None:
        if self._taken is None and (
            self._records >= self._snapshot_records or self._bytes >= self._snapshot_bytes
        ):
            self.take_snapshot()

    def _keep_snapshot_if_durable(self) -> None:
        taken = self._taken
        if taken is None or self._log.synced_end < taken.end_offset:
            return
        self._taken = None
        try:
            needed_from = self._snapshots.keep(taken)
            if needed_from > self._log.start_offset:
                self._log.unlink_left(self._log.advance_start(needed_from))
            self.snapshot_error = None
        except (StorageError, StorageFullError) as error:
            # The log is whole without it; the next one is tried when it is due.
            self.snapshot_error = error


def _binary_array(values: Sequence[bytes]) -> pa.Array:
    """As `pa.array` does, which for a list imports pandas where that is installed: 0.3 s of CPU."""
    offsets = array("i", [0, *accumulate(map(len, values))])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)
