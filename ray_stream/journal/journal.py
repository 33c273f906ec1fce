"""A `decide`/`apply` machine on one of our own logs.

Owns: facts to batches and back, replay, and snapshots that let the log be cut. Refuses: deciding
(the machine), threads, epochs (`metadata`, the controller), and when to sync: the owner runs
`sync_job` elsewhere and hands it back.

Facts are applied as they are appended; an answer may leave once `synced_end` has reached its
`end_offset`, and so may anything else that was looked at in the machine meanwhile (take
`written_end` then). They are appended in the log's leader epoch, so an owner that was replaced
cannot append. There is no way back from a failed append, sync or epoch: the journal is broken, and
its successor replays. Only a full disk is an ordinary refusal: nothing was written and nothing
applied.

A snapshot is taken of a state when it is written and kept once that state is durable. The log in
front of the older of the two snapshots is then let go.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from ray_stream.config import MiB
from ray_stream.errors import (
    CorruptBatchError,
    CorruptMetadataError,
    CorruptRecordError,
    RayStreamError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
)
from ray_stream.journal.snapshots import Snapshot, Snapshots, encode_snapshot
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import Buffer
from ray_stream.log.sync import SyncJob
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.records.reader import decode_columns

SNAPSHOT_RECORDS = 10_000
SNAPSHOT_BYTES = 16 * MiB
"""A snapshot is due after so many records or bytes, whichever comes first."""
_READ_BYTES = 4 * MiB

CommandT_contra = TypeVar("CommandT_contra", contravariant=True)
CommandT = TypeVar("CommandT")
RecordT = TypeVar("RecordT")
ResponseT = TypeVar("ResponseT")
AnswerT = TypeVar("AnswerT")
RecordT_co = TypeVar("RecordT_co", covariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)


class Resolved(Protocol[RecordT_co, ResponseT_co]):
    """What a machine's `decide` gives back."""

    @property
    def records(self) -> Sequence[RecordT_co]:
        """Facts to make durable."""
        ...

    @property
    def response(self) -> ResponseT_co:
        """The answer, once they are."""
        ...

    @property
    def signs(self) -> Sequence[Any]:
        """What changes for this life of the machine only."""
        ...


class Journaled(Protocol[CommandT_contra, RecordT, ResponseT_co]):
    """A machine that can live on a journal."""

    def decide(self, command: CommandT_contra, now_ms: int) -> Resolved[RecordT, ResponseT_co]:
        """Answer a command without changing anything; raise to refuse it."""
        ...

    def apply(self, record: RecordT) -> None:
        """Fold one fact in."""
        ...

    def notice(self, sign: Any) -> None:  # noqa: ANN401 - each machine has its own kinds
        """Take in what is true only now."""
        ...

    def snapshot(self) -> Sequence[RecordT]:
        """Facts which, applied to an empty machine, rebuild an equal one."""
        ...


class Codec(Protocol[RecordT]):
    """A machine's facts as bytes; a module with these two functions is one."""

    def encode_record(self, record: RecordT) -> bytes:
        """The bytes of one fact."""
        ...

    def decode_record(self, data: bytes) -> RecordT:
        """The fact; raises `CorruptMetadataError`."""
        ...


@dataclass(frozen=True, slots=True)
class Pending(Generic[AnswerT]):
    """An answer that may leave once the log is synced up to `end_offset`."""

    response: AnswerT
    end_offset: int


class Journal(Generic[CommandT, RecordT, ResponseT]):
    """One machine and its log. Everything but `SyncJob.run` belongs to one owner's thread."""

    def __init__(
        self,
        log: PartitionLog,
        machine: Journaled[CommandT, RecordT, ResponseT],
        codec: Codec[RecordT],
        snapshots: Snapshots,
        *,
        name: str,
        snapshot_records: int = SNAPSHOT_RECORDS,
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        """Call `replay` before anything else, unless the log is new.

        Args:
            log: open, its lock held by the caller.
            machine: empty.
            codec: of the machine's facts.
            snapshots: in the log's directory.
            name: of the log, for messages.
            snapshot_records: a snapshot is due after so many records,
            snapshot_bytes: or so many bytes.
        """
        self._log = log
        self._machine = machine
        self._codec = codec
        self._snapshots = snapshots
        self._name = name
        self._snapshot_records = snapshot_records
        self._snapshot_bytes = snapshot_bytes
        self._records = 0
        self._bytes = 0
        self._taken: Snapshot | None = None
        self._broken = ""
        self.damaged_snapshots: list[str] = []
        """What `replay` found damaged and did without, for the caller to tell."""
        self.snapshot_error: RayStreamError | None = None
        """Why the last snapshot was not kept; the log stays longer then, and nothing is lost."""

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
                f"the {self._name} is offline: {self._log.offline}; `ray-stream repair` brings it "
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
                    f"the {self._name} ends at {self._log.written_end}, and its snapshot stands "
                    f"for everything up to {end_offset}: durable metadata is missing; restore the "
                    "directory, and start nothing in its place"
                )
            try:
                encoded = self._snapshots.load(end_offset)
                records = [self._codec.decode_record(one) for one in encoded]
            except CorruptMetadataError as error:
                self.damaged_snapshots.append(str(error))
                continue
            for record in records:
                self._machine.apply(record)
            return end_offset
        if self._log.start_offset:
            raise CorruptMetadataError(
                f"the {self._name} begins at {self._log.start_offset}, and no snapshot of what was "
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
            raise CorruptMetadataError(f"the {self._name} is damaged: {error}") from error
        if offset != read.next_offset or not read.batches:
            raise CorruptMetadataError(f"the {self._name} cannot be read on from {offset}")
        return offset

    def _replay_batch(self, batch: Buffer, offset: int) -> int:
        header = decode_header(batch)
        if header.base_offset != offset:
            raise CorruptMetadataError(
                f"the {self._name} goes on at {header.base_offset} instead of {offset}"
            )
        columns = decode_columns(header, memoryview(batch)[HEADER_BYTES:])
        values = columns.column("value").to_pylist() if header.record_count else []
        for value in values:
            self._machine.apply(self._codec.decode_record(value or b""))
        self._count(len(values), header.batch_bytes)
        return header.next_offset

    def begin_epoch(self, epoch: int) -> None:
        """Append in this leader epoch from now on.

        Raises:
            RayStreamError: it could not begin, or the journal is broken.
        """
        self.refuse_if_broken()
        try:
            self._log.begin_epoch(epoch)
        except RayStreamError as error:
            self._broken = f"epoch {epoch} could not begin: {error}"
            raise

    # --- commands --------------------------------------------------------------------------------

    def submit(self, command: CommandT, now_ms: int) -> Pending[ResponseT]:
        """Decide, append, apply.

        Raises:
            StorageOfflineError: the journal is broken.
            StorageFullError: the disk is full; nothing happened.
            RayStreamError: refused by the command's rules; nothing happened. When `is_broken` holds
                then, the append failed, and this journal is of no use any more.
        """
        self.refuse_if_broken()
        resolution = self._machine.decide(command, now_ms)
        self.append(resolution.records, now_ms, resolution.signs)
        return Pending(resolution.response, self._log.written_end)

    def append(self, records: Sequence[RecordT], now_ms: int, signs: Sequence[Any] = ()) -> None:
        """Write facts as one batch, apply them, notice the signs; raises as `submit`."""
        size = self._write(records, now_ms) if records else 0
        # Should this not come to its end, machine and log differ.
        self._broken = "what was appended could not be applied"
        for record in records:
            self._machine.apply(record)
        for sign in signs:
            self._machine.notice(sign)
        self._broken = ""
        self._count(len(records), size)
        self._take_snapshot_if_due()

    def _write(self, records: Sequence[RecordT], now_ms: int) -> int:
        values = [self._codec.encode_record(record) for record in records]
        columns = RecordColumns(value=_binary_array(values), base_timestamp=now_ms)
        batch = b"".join(build_batch(columns))
        (outcome,) = self._log.append([batch], leader_epoch=self._log.leader_epoch, now_ms=now_ms)
        if isinstance(outcome, RayStreamError):
            if not isinstance(outcome, StorageFullError):
                self._broken = f"an append failed: {outcome}"
            raise outcome
        return len(batch)

    def refuse_if_broken(self) -> None:
        """Raise `StorageOfflineError` when only a successor can go on."""
        if self._broken:
            raise StorageOfflineError(
                f"the {self._name} is broken here ({self._broken}): it is replayed by a new process"
            )

    # --- syncs -----------------------------------------------------------------------------------

    def sync_job(self) -> SyncJob | None:
        """What to sync now, on any thread; None: nothing, or a round is under way."""
        return self._log.sync_job()

    def synced(self, job: SyncJob) -> None:
        """A round has ended well."""
        self._log.synced(job)
        self.keep_snapshot_if_durable()

    def sync_failed(self, job: SyncJob, error: StorageError) -> RayStreamError:
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
        self.refuse_if_broken()
        encoded = [self._codec.encode_record(one) for one in self._machine.snapshot()]
        self._taken = encode_snapshot(encoded, self._log.written_end)
        self._records = self._bytes = 0
        self.keep_snapshot_if_durable()

    def _count(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size

    def _take_snapshot_if_due(self) -> None:
        if self._taken is None and (
            self._records >= self._snapshot_records or self._bytes >= self._snapshot_bytes
        ):
            self.take_snapshot()

    def keep_snapshot_if_durable(self) -> None:
        """Write the snapshot that was taken, once what it stands for is synced; cut the log."""
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
