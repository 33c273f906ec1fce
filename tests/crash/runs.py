"""Seeded lives of a `PartitionLog` over a recording disk, with every promise it made on the way."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from ray_stream.errors import StorageError, StorageFullError
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import HEADER_BYTES, BatchHeader, decode_header
from ray_stream.testing.disk import Disk, Write
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import Durability
from tests.crash.ledger import NEVER, Entry, Ledger

DIRECTORY = "/data/topic-0"
BOOT = "boot-1"
NOW_MS = 1_750_000_000_000

FSYNC = LogOptions(
    topic="topic",
    topic_id="0" * 32,
    partition=0,
    durability=Durability.FSYNC,
    segment_bytes=2500,
    segment_ms=3_600_000,
    index_interval_bytes=600,
    batch_bytes_max=100_000,
    log_append_time=False,
)


def with_durability(options: LogOptions, durability: Durability) -> LogOptions:
    return LogOptions(
        **{
            **{name: getattr(options, name) for name in options.__slots__},
            "durability": durability,
        }
    )


REPLICATED = with_durability(FSYNC, Durability.REPLICATED)


def open_log(storage: MemoryStorage, *, boot: str, options: LogOptions = FSYNC) -> PartitionLog:
    return PartitionLog.open(storage, DIRECTORY, options, boot_id=boot, now_ms=NOW_MS)


def make_batch(text: str, records: int, padding: int, producer: tuple[int, int, int]) -> bytes:
    """A batch whose bytes occur nowhere else."""
    values = pa.array(
        [f"{text}.{n}".encode() + b"." * padding for n in range(records)], pa.binary()
    )
    columns = RecordColumns(value=values, base_timestamp=NOW_MS)
    producer_id, producer_epoch, base_sequence = producer
    return b"".join(
        build_batch(
            columns,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )
    )


@dataclass(frozen=True, slots=True)
class Found:
    """One batch that a log shows."""

    header: BatchHeader
    payload: bytes

    @property
    def key(self) -> tuple[int, int]:
        return self.header.base_offset, self.header.leader_epoch


def read_all(log: PartitionLog) -> list[Found]:
    """Everything that the log shows, from its start to its readable end."""
    found: list[Found] = []
    offset = log.start_offset
    while offset < log.readable_end:
        read = log.read(offset, bytes_max=1_000, end_offset=log.readable_end)
        assert read.next_offset > offset, "a read goes on"
        found += [Found(decode_header(one), bytes(one[HEADER_BYTES:])) for one in read.batches]
        offset = read.next_offset
    return found


class Run:
    """One life. Steps are methods; each keeps the ledger true."""

    def __init__(
        self, storage: MemoryStorage, options: LogOptions, rng: random.Random, *, boot: str = BOOT
    ) -> None:
        self.storage = storage
        self.options = options
        self.rng = rng
        self.boot = boot
        self.ledger = Ledger()
        self.sequences = {1: 0, 2: 0}
        self.numbered = 0
        self.before = storage.disk.copy()
        """The disk as the recorded life begins."""
        self.created_at = 0
        """From here on there must be a log to be opened."""

    def create(self) -> None:
        """Begin with a new log."""
        self.log = PartitionLog.create(
            self.storage, DIRECTORY, self.options, boot_id=self.boot, now_ms=NOW_MS
        )
        self.created_at = self.now
        self.begin_epoch()

    def recover(self, earlier: Ledger, crash_at: int) -> None:
        """Begin with what a crash left of an earlier life."""
        begun_at = self.now
        self.log = open_log(self.storage, boot=self.boot, options=self.options)
        there = {one.key for one in read_all(self.log)}
        self.ledger = earlier.after_crash(
            crash_at, begun_at, self.now, there, self.log.start_offset
        )
        self.ledger.epochs.append((self.now, self.log.leader_epoch))
        self.numbered = 1_000_000
        self.restore_sequences(self.log.written_end)
        if self.log.recovery.needs_new_epoch or self.log.leader_epoch < 0:
            self.begin_epoch()

    @property
    def now(self) -> int:
        """Disk operations so far."""
        return self.storage.disk.sequence

    def begin_epoch(self) -> None:
        self.log.begin_epoch(self.log.leader_epoch + 1)
        self.ledger.epochs.append((self.now, self.log.leader_epoch))

    def append(self, batches: int = 1, *, padding: int = 40) -> None:
        """Append batches of two idempotent producers, and now and then one of nobody's."""
        producers, sent = [], []
        for _ in range(batches):
            records = self.rng.randint(1, 3)
            producer_id = self.rng.choice((1, 1, 2, 2, -1))
            producer = (-1, -1, -1)
            if producer_id > 0:
                producer = (producer_id, 0, self.sequences[producer_id])
                self.sequences[producer_id] += records
            self.numbered += 1
            producers.append(producer)
            sent.append(make_batch(f"{self.numbered:06}", records, padding, producer))
        begun_at = self.now
        answers = self.log.append(sent, leader_epoch=self.log.leader_epoch, now_ms=NOW_MS)
        for answer, batch, producer in zip(answers, sent, producers, strict=True):
            written = self.written(begun_at, batch[HEADER_BYTES:])
            if isinstance(answer, StorageFullError) and self.storage.faults.capacity_bytes:
                # A full disk may have taken the batch before the whole write was taken back.
                refused, cutting_at, cut_at = True, begun_at, self.now
            else:
                assert isinstance(answer, Appended), answer
                assert written is not None, "an appended batch was written"
                assert written[1].base_offset == answer.base_offset
                refused, cutting_at, cut_at = False, NEVER, NEVER
            if written is not None:
                at, header = written
                entry = Entry(at, header, batch, producer, refused)
                entry.cutting_at, entry.cut_at = cutting_at, cut_at
                self.ledger.entries.append(entry)

    def written(self, begun_at: int, payload: bytes) -> tuple[int, BatchHeader] | None:
        """Behind which operation the payload was on the disk, and the header in front of it."""
        for number, one in enumerate(self.storage.disk.operations[begun_at:], begun_at + 1):
            if isinstance(one, Write) and (place := one.data.find(payload)) >= 0:
                return number, decode_header(one.data, place - HEADER_BYTES)
        return None

    def sync(self, meanwhile: Callable[[], None] | None = None) -> None:
        """A round of syncs; what is written `meanwhile` is not covered by it."""
        job = self.log.sync_job()
        if job is None:
            return
        issued_at = self.now
        if meanwhile is not None:
            meanwhile()
        with self.storage.syncs_issued_at(issued_at):
            job.run()
        self.log.synced(job)
        self.note_synced()

    def sync_and_fail(self) -> None:
        """A round of which one sync loses what it should have saved: the log is offline."""
        self.append(2)
        job = self.log.sync_job()
        assert job is not None, "something was appended"
        self.storage.faults.lost_by_failed_sync = self.rng
        self.storage.faults.fail_sync(path_part=".log")
        try:
            job.run()
        except StorageError as error:
            self.log.sync_failed(job, error)

    def note_synced(self) -> None:
        self.ledger.synced(self.now, self.log.synced_end)

    def truncate(self) -> None:
        """Cut a few batches off, as a follower does on divergence; a new epoch begins then."""
        live = [one for one in self.ledger.entries if one.base_offset >= self.log.start_offset]
        live = [one for one in live if one.next_offset <= self.log.written_end]
        if not live:
            return
        offset = self.rng.choice(live[-4:]).base_offset
        begun_at = self.now
        self.log.truncate(offset, now_ms=NOW_MS)
        self.ledger.truncated(begun_at, self.now, offset)
        self.note_synced()
        self.restore_sequences(offset)
        self.begin_epoch()

    def restore_sequences(self, end_offset: int) -> None:
        """Producers go on behind the last batch of theirs that is left."""
        for producer_id in self.sequences:
            left = [
                one.next_sequence
                for one in self.ledger.entries
                if one.producer[0] == producer_id
                and one.next_offset <= end_offset
                and one.cut_at == NEVER
            ]
            self.sequences[producer_id] = max(left, default=0)

    def advance_start(self) -> None:
        """Retention: some of the oldest batches leave the log."""
        span = self.log.synced_end - self.log.start_offset
        if span < 2:
            return
        offset = self.log.start_offset + self.rng.randint(1, span)
        begun_at = self.now
        left = self.log.advance_start(offset)
        self.ledger.starts.append((begun_at, self.now, offset))
        self.log.unlink_left(left)

    def become(self, durability: Durability) -> None:
        """The topic's durability is altered; a change to `fsync` is confirmed by a sync."""
        self.options = with_durability(self.options, durability)
        due = self.log.set_options(self.options)
        while self.log.synced_end < due:
            self.sync()

    def reopen(self) -> None:
        """Closed in order and opened again, in the same boot."""
        self.log.close()
        self.note_synced()
        self.log = open_log(self.storage, boot=self.boot, options=self.options)
        if self.rng.random() < 0.5:
            self.begin_epoch()

    def live(self, steps: int) -> None:
        """A random life."""
        for _ in range(steps):
            self.step()
        self.sync()
        self.log.close()
        self.note_synced()

    def step(self) -> None:
        """Something that happens to logs; what is frequent there is frequent here."""
        (what,) = self.rng.choices(list(STEPS), list(STEPS.values()))
        what(self)

    def append_some(self) -> None:
        self.append(self.rng.randint(1, 3), padding=self.rng.choice((5, 40, 40, 700)))

    def sync_beside_appends(self) -> None:
        self.sync(meanwhile=lambda: self.append(self.rng.randint(1, 2)))

    def fill_the_disk(self) -> None:
        """Some of an append fits, or nothing; then there is room again."""
        faults, disk = self.storage.faults, self.storage.disk
        faults.capacity_bytes = disk.used_bytes() + self.rng.randint(0, 1500)
        self.append(self.rng.randint(1, 3), padding=self.rng.choice((40, 400)))
        with suppress(StorageFullError):
            self.log.checkpoint()
        faults.heal()
        self.restore_sequences(self.log.written_end)

    def roll(self) -> None:
        self.log.roll()

    def checkpoint(self) -> None:
        self.log.checkpoint()

    def alter(self) -> None:
        replicated = self.options.durability is Durability.REPLICATED
        self.become(Durability.FSYNC if replicated else Durability.REPLICATED)


STEPS: dict[Callable[[Run], None], int] = {
    Run.append_some: 38,
    Run.sync: 28,
    Run.sync_beside_appends: 10,
    Run.roll: 4,
    Run.checkpoint: 5,
    Run.truncate: 4,
    Run.advance_start: 4,
    Run.begin_epoch: 3,
    Run.reopen: 2,
    Run.alter: 2,
    Run.fill_the_disk: 2,
}


def lived(
    seed: int,
    steps: int,
    options: LogOptions = FSYNC,
    kind: type[MemoryStorage] = MemoryStorage,
    *,
    fails_at_last: bool = False,
) -> Run:
    """A recorded life from a log's creation to its closing, or to a failed sync."""
    storage = kind(Disk())
    storage.make_directory("/data")
    run = Run(storage, options, random.Random(seed))
    run.create()
    if fails_at_last:
        for _ in range(steps):
            run.step()
        run.become(Durability.FSYNC)
        run.sync_and_fail()
    else:
        run.live(steps)
    return run
