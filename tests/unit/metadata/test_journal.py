"""The metadata machine on its log: what was answered is there again, or it refuses to open."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import crc32c
import pytest

from ray_stream.errors import (
    ControllerNotAvailableError,
    CorruptMetadataError,
    DataDirVersionError,
    InvalidArgumentError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
    TopicAlreadyExistsError,
)
from ray_stream.journal.journal import Pending
from ray_stream.journal.snapshots import Snapshots, decode_snapshot, encode_snapshot
from ray_stream.log.partition_log import PartitionLog
from ray_stream.metadata.commands import (
    BrokerRegistered,
    ClaimLeadership,
    Command,
    CreateTopic,
    DirectoryReport,
    InitProducerId,
    RegisterBroker,
    TopicCreated,
)
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.journal import OPTIONS, MetadataJournal
from ray_stream.metadata.records import BrokerNamed, ControllerClaimed, encode_record
from ray_stream.testing.memory import MemoryStorage
from tests.unit.metadata.harness import CLUSTER_ID, FIRST, NOW_MS

HERE = f"/data/{FIRST}/metadata"
REGISTER = RegisterBroker("n1", "h1", "i1", "a1", 2, [DirectoryReport(FIRST, 0, True, True, 0)])


def sync(journal: MetadataJournal) -> None:
    job = journal.sync_job()
    if job is not None:
        job.run()
        journal.synced(job)


def create(number: int, partitions: int = 3) -> CreateTopic:
    return CreateTopic(f"topic-{number}", f"{number:032x}", partitions, 1, False, False, {})


class Written:
    """A journal in memory."""

    def __init__(self, *, segment_bytes: int = 2**20, snapshot_records: int = 10**6) -> None:
        self.options = replace(OPTIONS, segment_bytes=segment_bytes)
        self.snapshot_records = snapshot_records
        self.storage = MemoryStorage()
        self.storage.make_directory(f"/data/{FIRST}")
        self.journal = MetadataJournal.create(self.storage, HERE, boot_id="b1", now_ms=NOW_MS)
        self.reopen(self.storage)
        self.journal.format(CLUSTER_ID, FIRST, "h1", NOW_MS)
        self.claim()

    def claim(self, epochs: tuple[int, ...] = ()) -> int:
        epoch = self.journal.claim(epochs, NOW_MS).response
        self.broker: BrokerRegistered = self.do(REGISTER)
        sync(self.journal)
        return epoch

    def do(self, command: Command) -> Any:  # noqa: ANN401 - each command has its own answer
        """Submit, sync, answer."""
        pending = self.journal.submit(command, NOW_MS)
        sync(self.journal)
        assert self.journal.synced_end >= pending.end_offset
        return pending.response

    def lead(self, number: int) -> list[int]:
        keys = [(f"{number:032x}", 0)]
        command = ClaimLeadership(self.broker.broker_id, self.broker.broker_epoch, "host", keys)
        epochs: list[int] = self.do(command).leader_epochs
        return epochs

    def reopen(self, storage: MemoryStorage, boot_id: str = "b1") -> None:
        """What the next controller does."""
        self.storage = storage
        log = PartitionLog.open(storage, HERE, self.options, boot_id=boot_id, now_ms=NOW_MS)
        snapshots = Snapshots(storage, HERE)
        self.journal = MetadataJournal(
            log, MetadataMachine(), snapshots, snapshot_records=self.snapshot_records
        )
        self.journal.replay()


@pytest.fixture
def written() -> Written:
    return Written()


def test_the_next_controller_knows_what_the_last_one_answered(written: Written) -> None:
    for number in range(5):
        written.do(create(number))
    image = written.journal.machine.image
    written.reopen(written.storage.killed())
    assert written.journal.machine.image == image
    written.journal.machine.check()


def test_a_new_log_begins_with_its_cluster(written: Written) -> None:
    image = written.journal.machine.image
    assert (image.cluster_id, image.metadata_directory_id) == (CLUSTER_ID, FIRST)
    with pytest.raises(InvalidArgumentError):
        written.journal.format("another", "directory", "h1", NOW_MS)


def test_a_creation_that_was_cut_short_can_be_done_again() -> None:
    storage = MemoryStorage()
    storage.make_directory(f"/data/{FIRST}")
    first = MetadataJournal.create(storage, HERE, boot_id="b1", now_ms=NOW_MS)
    first.format(CLUSTER_ID, FIRST, "h1", NOW_MS)
    for crashed in storage.crash_states(random.Random(1)):
        journal = MetadataJournal.open(crashed, HERE, boot_id="b2", now_ms=NOW_MS)
        if not journal.is_formatted:
            journal.format(CLUSTER_ID, FIRST, "h1", NOW_MS)
        journal.claim([], NOW_MS)
        sync(journal)
        assert journal.machine.image.cluster_id == CLUSTER_ID


def test_each_controller_has_a_higher_epoch_than_anybody_has_seen(written: Written) -> None:
    first = written.journal.machine.image.controller_epoch
    written.reopen(written.storage.killed())
    assert written.claim((first + 7,)) == first + 8
    written.reopen(written.storage.killed())
    assert written.claim() == first + 9


def test_an_epoch_that_was_begun_and_never_claimed_is_not_used_again(written: Written) -> None:
    first = written.journal.machine.image.controller_epoch
    written.reopen(written.storage.killed())
    written.storage.faults.fail_write(path_part=".log")
    with pytest.raises(StorageOfflineError):
        written.journal.claim([], NOW_MS)
    assert written.journal.is_broken
    written.storage.faults.heal()
    written.reopen(written.storage.killed())
    assert written.claim() == first + 2


def test_nothing_is_decided_before_the_epoch_is_claimed(written: Written) -> None:
    written.reopen(written.storage.killed())
    with pytest.raises(ControllerNotAvailableError):
        written.journal.submit(create(1), NOW_MS)


def test_a_refusal_changes_nothing(written: Written) -> None:
    written.do(create(1))
    end = written.journal.written_end
    with pytest.raises(TopicAlreadyExistsError):
        written.journal.submit(CreateTopic("topic-1", "9" * 32, 3, 1, False, False, {}), NOW_MS)
    assert (written.journal.written_end, written.journal.is_broken) == (end, False)


def test_an_answer_without_facts_waits_for_the_facts_before_it(written: Written) -> None:
    created: Pending[Any] = written.journal.submit(create(1), NOW_MS)
    given = written.journal.submit(InitProducerId(), NOW_MS)
    assert given.end_offset == created.end_offset > written.journal.synced_end


def test_what_was_not_synced_was_not_answered(written: Written) -> None:
    written.do(create(1))
    pending = written.journal.submit(create(2), NOW_MS)
    assert isinstance(pending.response, TopicCreated)
    assert pending.end_offset > written.journal.synced_end
    for crashed in written.storage.crash_states(random.Random(1)):
        written.reopen(crashed, boot_id="b2")
        names = list(written.journal.machine.image.topic_ids)
        assert names in (["topic-1"], ["topic-1", "topic-2"])


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_append_breaks_the_journal(written: Written) -> None:
    written.storage.faults.fail_write(path_part=".log")
    with pytest.raises(StorageOfflineError):
        written.journal.submit(create(1), NOW_MS)
    assert written.journal.is_broken
    with pytest.raises(ControllerNotAvailableError, match="broken"):
        written.journal.submit(create(2), NOW_MS)
    written.storage.faults.heal()
    written.reopen(written.storage.killed())
    assert written.journal.machine.image.topic_ids == {}
    written.claim()
    written.do(create(1))


def test_a_failed_sync_breaks_the_journal_and_the_log_stays_offline(written: Written) -> None:
    written.journal.submit(create(1), NOW_MS)
    written.storage.faults.fail_sync(path_part=".log")
    job = written.journal.sync_job()
    assert job is not None
    with pytest.raises(StorageError) as failed:
        job.run()
    written.journal.sync_failed(job, failed.value)
    assert written.journal.is_broken
    written.storage.faults.heal()
    with pytest.raises(StorageOfflineError, match="ray-stream repair"):
        written.reopen(written.storage.killed())


def test_a_full_disk_is_a_refusal_and_passes(written: Written) -> None:
    image = written.journal.machine.snapshot()
    written.storage.faults.capacity_bytes = 0
    with pytest.raises(StorageFullError):
        written.journal.submit(create(1), NOW_MS)
    assert not written.journal.is_broken
    assert written.journal.machine.snapshot() == image
    written.storage.faults.heal()
    written.do(create(1))


def flip(written: Written, name: str, position: int) -> MemoryStorage:
    storage = written.storage.killed()
    storage.flip_bit(f"{HERE}/{name}", position)
    return storage


def test_a_flipped_bit_is_refused_and_nothing_is_guessed(written: Written) -> None:
    for number in range(5):
        written.do(create(number))
    written.journal.close()
    size = written.storage.open_for_reading(f"{HERE}/{0:020d}.log").size()
    for position in random.Random(1).sample(range(size), 40):
        with pytest.raises(CorruptMetadataError):
            written.reopen(flip(written, f"{0:020d}.log", position))


def test_a_missing_log_is_not_an_empty_one(written: Written) -> None:
    with pytest.raises(StorageError, match="missing is not empty"):
        MetadataJournal.open(written.storage, "/data/elsewhere", boot_id="b1", now_ms=NOW_MS)


# --- snapshots -----------------------------------------------------------------------------------


def images(written: Written) -> list[str]:
    return [name for name in written.storage.list_directory(HERE) if name.endswith(".image")]


@pytest.fixture
def cut() -> Written:
    """Many snapshots, and a log that was cut behind the older of the two that are kept."""
    written = Written(snapshot_records=20)
    for number in range(60):
        written.do(create(number))
        written.lead(number)
    assert len(images(written)) == 2
    return written


def test_a_snapshot_and_the_log_behind_it_are_the_whole_image(cut: Written) -> None:
    image = cut.journal.machine.image
    cut.reopen(cut.storage.killed())
    assert cut.journal.machine.image == image
    assert cut.claim()
    assert cut.lead(7) == [1]


def test_a_damaged_newest_snapshot_is_told_and_done_without(cut: Written) -> None:
    image = cut.journal.machine.image
    cut.reopen(flip(cut, images(cut)[-1], 50))
    assert cut.journal.machine.image == image
    assert "damaged" in cut.journal.damaged_snapshots[0]


def test_without_a_whole_snapshot_a_cut_log_is_refused(cut: Written) -> None:
    storage = flip(cut, images(cut)[-1], 50)
    storage.flip_bit(f"{HERE}/{images(cut)[0]}", 50)
    with pytest.raises(CorruptMetadataError, match="no snapshot of what was before is whole"):
        cut.reopen(storage)


def test_a_log_that_ends_before_its_snapshot_is_refused(cut: Written) -> None:
    storage = cut.storage.killed()
    taken = encode_snapshot(
        [encode_record(one) for one in cut.journal.machine.snapshot()],
        cut.journal.written_end + 1,
    )
    Snapshots(storage, HERE).keep(taken)
    with pytest.raises(CorruptMetadataError, match="durable metadata is missing"):
        cut.reopen(storage)


def test_the_log_in_front_of_the_older_snapshot_is_let_go() -> None:
    written = Written(segment_bytes=4096, snapshot_records=20)
    for number in range(60):
        written.do(create(number))
    older, _ = (int(name.removesuffix(".image")) for name in images(written))
    names = written.storage.list_directory(HERE)
    segments = [int(name.removesuffix(".log")) for name in names if name.endswith(".log")]
    assert 0 < segments[0] <= older
    written.reopen(written.storage.killed())
    assert len(written.journal.machine.image.topics) == 60


def test_a_snapshot_is_kept_only_once_all_of_it_is_durable() -> None:
    written = Written()
    written.do(create(1))
    written.journal.submit(create(2), NOW_MS)
    written.journal.take_snapshot()
    assert images(written) == []
    sync(written.journal)
    assert images(written) == [f"{written.journal.written_end:020d}.image"]


def test_a_snapshot_that_cannot_be_kept_costs_nothing() -> None:
    written = Written()
    written.do(create(1))
    written.storage.faults.fail_sync(path_part=".image")
    written.journal.take_snapshot()
    assert isinstance(written.journal.snapshot_error, StorageError)
    assert not written.journal.is_broken
    written.do(create(2))
    image = written.journal.machine.image
    written.reopen(written.storage.killed())
    assert written.journal.machine.image == image
    assert not [name for name in written.storage.list_directory(HERE) if name.endswith(".tmp")]


SNAPSHOT = encode_snapshot(
    [encode_record(ControllerClaimed(7)), encode_record(BrokerNamed(2))], 7
).data


def test_a_snapshot_is_written_with_the_bytes_that_were_decided() -> None:
    # Magic, version, records, end offset, payload bytes, payload's checksum, header's, payload.
    assert (
        bytes.fromhex(
            "52535452494d470a 01000000 02000000 0700000000000000 "
            "0d00000000000000 58d2977e b9889d11 92c40401920207c40401920302"
        )
        == SNAPSHOT
    )


def test_a_newer_versions_snapshot_is_refused_by_that_name() -> None:
    header = bytearray(SNAPSHOT[:36])
    header[8] = 2
    data = bytes(header) + crc32c.crc32c(header).to_bytes(4, "little") + SNAPSHOT[40:]
    with pytest.raises(DataDirVersionError, match="newer one"):
        decode_snapshot(data, 7, "x")


def test_a_snapshot_under_another_name_is_refused() -> None:
    with pytest.raises(CorruptMetadataError):
        decode_snapshot(SNAPSHOT, 8, "x")


@pytest.mark.parametrize("position", range(len(SNAPSHOT)))
def test_any_flipped_bit_of_a_snapshot_is_noticed(position: int) -> None:
    data = bytearray(SNAPSHOT)
    for bit in range(8):
        data[position] ^= 1 << bit
        with pytest.raises(CorruptMetadataError):
            decode_snapshot(bytes(data), 7, "x")
        data[position] ^= 1 << bit
    with pytest.raises(CorruptMetadataError):
        decode_snapshot(bytes(data[:position]), 7, "x")


def test_facts_are_written_without_the_weight_of_pandas() -> None:
    script = """
import sys
from tests.unit.metadata.test_journal import Written, create
world = Written()
world.do(create(1))
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
