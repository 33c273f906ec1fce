"""What a disk that refuses something does to one partition, and not to the others of its actor.

Whatever leaves a method of the control or the host ends the actor's process (`actors.loop`), so
every call here that returns is part of the promise.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from ray_stream import errors
from ray_stream.actors.partition import PartitionActor
from ray_stream.config import TopicConfig
from ray_stream.log import locks
from ray_stream.log.locks import Holder
from ray_stream.log.storage import DiskStorage, File
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.rpc.hosting import (
    AlterPartitions,
    LeadPartitions,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import ProducePartition, ProduceRequest
from ray_stream.testing.batches import batch_of
from ray_stream.testing.memory import MemoryStorage
from tests.unit.actors.test_partition_host import TOPIC, Rig

FSYNC = TopicConfig()
REPLICATED = TopicConfig(durability="replicated")
ME = Holder(pid=1, start_time=1, boot_id="boot")


def spec_of(rig: Rig, number: int, config: TopicConfig | None = None) -> AssignedPartition:
    return structs.replace(rig.spec(config, 1), partition=number)


def two_partitions(storage: MemoryStorage, config: TopicConfig = FSYNC) -> Rig:
    storage.make_directory("/data")
    rig = Rig(Path("/data"), config, storage)
    specs = [spec_of(rig, number) for number in range(2)]
    rig.control.prepare(PreparePartitions({"dir": rig.root}, specs), lambda _: None)
    rig.control.lead(LeadPartitions([(TOPIC, one, 0) for one in range(2)]), lambda _: None)
    return rig


def fill(storage: MemoryStorage) -> None:
    storage.faults.capacity_bytes = storage.disk.used_bytes()


def looks(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.clock.ms += 1_000
        rig.control.tick()


# --- leader epochs -------------------------------------------------------------------------------


def test_an_epoch_that_a_full_disk_refused_did_not_begin() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    rig.produce(b"a" * 100)
    rig.syncs.finish()
    log = rig.host.partitions[TOPIC, 0].log
    fill(storage)
    with pytest.raises(errors.StorageFullError):
        log.begin_epoch(1)
    assert log.leader_epoch == 0
    storage.faults.capacity_bytes = None
    log.begin_epoch(1)
    assert log.leader_epoch == 1


def test_what_is_acknowledged_after_a_refused_epoch_survives_a_kill() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    rig.produce(b"a" * 100)
    rig.syncs.finish()
    fill(storage)
    led: list[Any] = []
    rig.control.lead(LeadPartitions([(TOPIC, 0, 1)]), led.append)
    assert "StorageFullError" in led[0].served[0].offline_reason
    storage.faults.capacity_bytes = None

    refused = rig.produce(b"b" * 100, epoch=1)
    accepted = rig.produce(b"c" * 100, epoch=0)
    rig.syncs.finish()
    assert refused[0].results[0].error.name == "UnknownLeaderEpochError"
    assert accepted[0].results[0].error is None

    again = Rig(Path("/data"), FSYNC, storage.killed())
    assert again.prepare() == ""
    assert again.host.partitions[TOPIC, 0].log.written_end == 2


# --- acknowledgements that say fsync -------------------------------------------------------------


def test_an_acknowledgement_that_says_fsync_waits_for_its_sync_though_settings_change() -> None:
    rig = two_partitions(MemoryStorage())
    answers = rig.produce(b"a")
    rig.control.alter(AlterPartitions([spec_of(rig, 0, REPLICATED)]), lambda _: None)
    rig.host.end_turn()
    assert answers == []
    rig.syncs.finish()
    assert [one.results[0].durability for one in answers] == ["fsync"]
    assert rig.host.partitions[TOPIC, 0].log.synced_end == 1


def test_a_duplicate_that_says_fsync_waits_for_the_sync() -> None:
    rig = two_partitions(MemoryStorage(), REPLICATED)
    batch = batch_of([b"a"], producer_id=1, producer_epoch=0, base_sequence=0)
    request = ProduceRequest(-1, 1_000, [ProducePartition(TOPIC, 0, 0)], [batch])
    first: list[Any] = []
    rig.host.produce(request, first.append)
    rig.host.end_turn()
    assert first[0].results[0].durability == "replicated"

    rig.control.alter(AlterPartitions([spec_of(rig, 0, FSYNC)]), lambda _: None)
    again: list[Any] = []
    rig.host.produce(request, again.append)
    rig.host.end_turn()
    assert again == []
    rig.syncs.finish()
    assert [one.results[0].durability for one in again] == ["fsync"]
    assert again[0].results[0].duplicate


# --- the others go on ----------------------------------------------------------------------------


def test_a_topic_can_be_deleted_on_a_full_disk() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    for number in range(2):
        rig.produce(b"a" * 100, partition=number)
    rig.syncs.finish()
    fill(storage)
    answers: list[Any] = []
    request = ReleasePartitions([(TOPIC, 0)], True, {"dir": rig.root}, [(TOPIC, 0, "dir")])
    rig.control.release(request, answers.append)
    assert answers[0].partitions == [(TOPIC, 0)]
    other = storage.another_process()
    assert locks.try_lock(other, rig.root, locks.partition_position(TOPIC, 0)) is not None
    assert not other.is_directory(f"{rig.root}/{TOPIC}-0")


def test_files_that_cannot_be_deleted_are_told_and_deleted_later() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    rig.produce(b"a")
    rig.syncs.finish()
    rig.control.release(ReleasePartitions([(TOPIC, 0)], False, {}, []), lambda _: None)
    storage.faults.fail_sync(path_part=rig.root)
    answers: list[Any] = []
    request = ReleasePartitions([], True, {"dir": rig.root}, [(TOPIC, 0, "dir")])
    rig.control.release(request, answers.append)
    assert isinstance(answers[0], errors.StorageError)
    rig.control.release(request, answers.append)
    assert answers[1].partitions == []
    assert not storage.is_directory(f"{rig.root}/{TOPIC}-0")


def test_closing_on_a_full_disk_gives_back_every_lock() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    for number in range(2):
        rig.produce(b"a" * 100, partition=number)
    rig.syncs.finish()
    fill(storage)
    rig.control.close()
    other = storage.another_process()
    for number in range(2):
        assert locks.try_lock(other, rig.root, locks.partition_position(TOPIC, number)) is not None


def test_a_checkpoint_that_fails_costs_no_other_partition_its_own() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    for number in range(2):
        rig.produce(b"a", partition=number)
    rig.syncs.finish()
    for _ in range(2):
        storage.faults.fail_write(path_part="-0/checkpoint")
        looks(rig, 1)
    assert rig.host.partitions[TOPIC, 1].checkpointed_end == 1
    looks(rig, 2)
    assert rig.host.partitions[TOPIC, 0].checkpointed_end == 1, "tried again"


def test_a_disk_that_dies_under_one_partition_leaves_the_others() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    rig.produce(b"a", partition=1)
    rig.syncs.finish()
    rig.produce(b"a", partition=0)
    rig.syncs.fail()
    assert rig.host.partitions[TOPIC, 0].log.offline
    storage.faults.fail_write(path_part="-0/")
    looks(rig, 2)
    assert rig.host.partitions[TOPIC, 1].checkpointed_end == 1


def test_damage_found_in_an_idle_log_is_recorded() -> None:
    storage = MemoryStorage()
    rig = two_partitions(storage)
    for _ in range(2):
        rig.produce(b"a" * 100)
        rig.syncs.finish()
    looks(rig, 3)
    hosted = rig.host.partitions[TOPIC, 0]
    assert hosted.checkpointed_end == 2
    storage.flip_bit(f"{hosted.directory}/{0:020d}.log", 150)
    (answer,) = rig.fetch(0)
    assert answer.results[0].error.name == "CorruptRecordError"
    looks(rig, 3)
    again = Rig(Path("/data"), FSYNC, storage.killed())
    assert again.prepare() == ""
    assert again.host.partitions[TOPIC, 0].log.describe().quarantined


def test_alter_is_answered_although_a_partition_goes_offline() -> None:
    rig = two_partitions(MemoryStorage(), REPLICATED)
    for number in range(2):
        rig.produce(b"a", partition=number)
    answers: list[Any] = []
    specs = [spec_of(rig, number, FSYNC) for number in range(2)]
    rig.control.alter(AlterPartitions(specs), answers.append)
    rig.host.end_turn()
    (good, bad), rig.syncs.held = rig.syncs.held, []
    good[0].run()
    good[1](None)
    bad[1](errors.StorageError("sync failed: Input/output error"))
    rig.host.end_turn()
    first, second = answers[0].served
    assert first.offline_reason == ""
    assert "sync failed" in second.offline_reason


# --- locks and their notes -----------------------------------------------------------------------


class NoRoomForNotes(DiskStorage):
    is_full = True

    def open(self, path: str, *, create: bool = False) -> File:
        if self.is_full and path.endswith(locks.HOLDER_NAME):
            raise errors.StorageFullError("open failed: No space left on device")
        return super().open(path, create=create)


def test_a_lock_whose_holder_cannot_be_noted_is_given_back(tmp_path: Path) -> None:
    storage = NoRoomForNotes()
    shell: Any = SimpleNamespace(_holder=ME)
    (tmp_path / f"{TOPIC}-0").mkdir()
    with pytest.raises(errors.StorageFullError):
        PartitionActor._lock(shell, storage, str(tmp_path), TOPIC, 0)
    storage.is_full = False
    PartitionActor._lock(shell, storage, str(tmp_path), TOPIC, 0).release()


def test_partitions_are_prepared_although_their_holder_cannot_be_noted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, FSYNC)
    shell: Any = SimpleNamespace(
        _holder=ME, _host=rig.host, _control=rig.control, _storage=NoRoomForNotes()
    )
    answers: list[Any] = []
    request = PreparePartitions({"dir": str(tmp_path)}, [rig.spec()])
    PartitionActor._prepare(shell, request, answers.append)
    assert answers[0].results == [(TOPIC, 0, "")]
