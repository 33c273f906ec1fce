"""A controller that dies anywhere: every answer it gave holds, and nothing was invented."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from ray_stream.journal.snapshots import Snapshots
from ray_stream.log.partition_log import PartitionLog
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerRegistered,
    ClaimLeadership,
    Command,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    DirectoryReport,
    PartitionServed,
    RegisterBroker,
    ReportServed,
    Response,
)
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.image import Image
from ray_stream.metadata.journal import OPTIONS, MetadataJournal
from ray_stream.testing.memory import MemoryStorage

ROOT = "/data/directory"
HERE = f"{ROOT}/metadata"
NOW_MS = 1_700_000_000_000
OPTIONS_SMALL = replace(OPTIONS, segment_bytes=2048)
REGISTER = RegisterBroker(
    "n1", "h1", "i1", "a1", 2, [DirectoryReport("directory", 0, True, True, 0)]
)


def open_journal(storage: MemoryStorage, boot_id: str) -> MetadataJournal:
    log = PartitionLog.open(storage, HERE, OPTIONS_SMALL, boot_id=boot_id, now_ms=NOW_MS)
    journal = MetadataJournal(log, MetadataMachine(), Snapshots(storage, HERE), snapshot_records=12)
    journal.replay()
    return journal


def image_of(journal: MetadataJournal) -> Image:
    """A copy."""
    image = Image()
    for record in journal.machine.snapshot():
        image.apply(record)
    return image


@dataclass
class Life:
    """One controller's, on a disk that records every operation."""

    storage: MemoryStorage
    journal: MetadataJournal
    broker: BrokerRegistered
    images: dict[int, Image] = field(default_factory=dict)
    """What the machine was at each end of the log."""
    answered: list[tuple[int, int, int]] = field(default_factory=list)
    """(operations of the disk by then, end offset that was durable, controller epoch)."""
    openable_at: int = 0

    def note(self) -> None:
        self.images[self.journal.written_end] = image_of(self.journal)

    def sync(self) -> None:
        job = self.journal.sync_job()
        if job is not None:
            job.run()
            self.answered.append((self.storage.disk.sequence, job.end.offset, self.epoch))
            self.journal.synced(job)

    @property
    def epoch(self) -> int:
        return self.journal.machine.image.controller_epoch

    def do(self, command: Command) -> Response:
        pending = self.journal.submit(command, NOW_MS)
        self.note()
        return pending.response

    def claim(self) -> None:
        self.journal.claim([], NOW_MS)
        self.note()
        answer = self.do(REGISTER)
        assert isinstance(answer, BrokerRegistered)
        self.broker = answer
        self.sync()

    def next_controller(self) -> None:
        self.journal = open_journal(self.storage, "b1")
        self.claim()


def begin() -> Life:
    storage = MemoryStorage()
    storage.make_directory(ROOT)
    MetadataJournal.create(storage, HERE, boot_id="b1", now_ms=NOW_MS)
    journal = open_journal(storage, "b1")
    life = Life(storage, journal, BrokerRegistered("", 0, 0, 0, [], []))
    life.openable_at = storage.disk.sequence
    life.note()
    journal.format("cluster", "directory", "h1", NOW_MS)
    life.note()
    life.claim()
    return life


def live(life: Life, rng: random.Random, steps: int) -> None:
    """Commands, syncs of some of them, and controllers that follow each other."""
    for step in range(steps):
        topics = list(life.journal.machine.image.topics.values())
        tombstones = list(life.journal.machine.image.tombstones.items())
        me = (life.broker.broker_id, life.broker.broker_epoch)
        draw = rng.random()
        if draw < 0.4 or not topics:
            count = rng.randint(1, 5)
            life.do(CreateTopic(f"t{step}", f"{step:032x}", count, 1, False, False, {}))
        elif draw < 0.6:
            topic = rng.choice(topics)
            keys = [(topic.topic_id, number) for number in range(len(topic.partitions))]
            life.do(ClaimLeadership(*me, "host", keys))
            served = [
                PartitionServed(*key, one.leader_epoch, 0)
                for key, one in zip(keys, topic.partitions, strict=True)
            ]
            life.do(ReportServed(*me, "host", served))
        elif draw < 0.7:
            life.do(AlterTopic(rng.choice(topics).name, None, {"segment_ms": step + 1}))
        elif draw < 0.8:
            life.do(DeleteTopic(rng.choice(topics).name))
        elif draw < 0.9 and tombstones:
            topic_id, tombstone = rng.choice(tombstones)
            life.do(ConfirmDeleted(*me, [(topic_id, number) for number in tombstone.holders]))
        elif draw > 0.97:
            life.sync()
            life.next_controller()
        if rng.random() < 0.5:
            life.sync()
    life.sync()


def crash_points(life: Life) -> Iterator[tuple[int, MemoryStorage]]:
    """The machine after each operation on its disk."""
    disk = MemoryStorage().disk
    for operation in life.storage.disk.operations:
        disk.apply(operation)
        if disk.sequence >= life.openable_at:
            yield disk.sequence, MemoryStorage(disk)


def check(life: Life, crash_at: int, storage: MemoryStorage, boot_id: str) -> None:
    journal = open_journal(storage, boot_id)
    known = [one for one in life.answered if one[0] <= crash_at]
    durable = max((end for _, end, _ in known), default=0)
    epoch = max((epoch for _, _, epoch in known), default=-1)
    assert journal.written_end >= durable, "an answer is forgotten"
    assert journal.machine.image == life.images[journal.written_end], "another cluster"
    assert not journal.damaged_snapshots
    journal.machine.check()
    if journal.is_formatted:
        assert journal.claim([], NOW_MS).response > epoch
        journal.submit(REGISTER, NOW_MS)
        journal.submit(CreateTopic("new", "f" * 32, 2, 1, False, False, {}), NOW_MS)
        job = journal.sync_job()
        assert job is not None
        job.run()
        journal.synced(job)
        after = open_journal(storage.killed(), boot_id)
        assert after.machine.image == journal.machine.image


@pytest.mark.parametrize("seed", range(3))
def test_wherever_a_controller_dies_its_answers_hold(seed: int) -> None:
    rng = random.Random(seed)
    life = begin()
    live(life, rng, 40)
    assert len(Snapshots(life.storage, HERE).end_offsets()) == 2
    points = list(range(life.openable_at, life.storage.disk.sequence + 1))
    chosen = set(rng.sample(points, min(len(points), 40)))
    for crash_at, machine in crash_points(life):
        if crash_at not in chosen:
            continue
        check(life, crash_at, machine.killed(), "b1")
        for state in machine.crash_states(rng, all_up_to=3, samples=4):
            check(life, crash_at, state, "b2")
