"""Crashes that once broke a promise, each by itself."""

import random

import pytest

from ray_stream.errors import StorageFullError
from ray_stream.testing.disk import DROPPED, KEPT, Rename, Unlink
from ray_stream.testing.memory import MemoryStorage
from tests.crash.runs import BOOT, FSYNC, NOW_MS, Run, make_batch, open_log


def machine_behind_the_last_rename(run: Run, end: int) -> MemoryStorage:
    """The machine behind the last rename among the first `end` operations; nothing synced it."""
    operations = run.storage.disk.operations
    number = max(n for n, one in enumerate(operations[:end]) if isinstance(one, Rename))
    disk = run.before.copy()
    for operation in operations[len(disk.operations) : number + 1]:
        disk.apply(operation)
    return MemoryStorage(disk)


@pytest.fixture
def run() -> Run:
    storage = MemoryStorage()
    storage.make_directory("/data")
    run = Run(storage, FSYNC, random.Random(0))
    run.create()
    for _ in range(12):
        run.append()
        run.sync()
    return run


def test_a_log_start_that_was_shown_after_a_kill_survives_a_power_loss(run: Run) -> None:
    """The process dies between the checkpoint's rename and the sync of its directory."""
    run.log.advance_start(run.log.synced_end - 1)
    machine = machine_behind_the_last_rename(run, run.now).killed()
    log = open_log(machine, boot=BOOT)
    shown = log.start_offset
    log.unlink_left(log.left)
    fates = [DROPPED if isinstance(one, Rename) else KEPT for one in machine.disk.unsynced()]
    assert any(isinstance(one, Unlink) for one in machine.disk.unsynced())
    after = open_log(machine.crashed(fates), boot="after")
    assert after.start_offset == shown
    assert after.recovery.quarantined == ()


def test_a_leader_epoch_that_was_shown_after_a_kill_survives_a_power_loss(run: Run) -> None:
    run.log.checkpoint()
    run.log.begin_epoch(7)
    machine = machine_behind_the_last_rename(run, run.now).killed()
    assert open_log(machine, boot=BOOT).leader_epoch == 7
    lost = [DROPPED] * len(machine.disk.unsynced())
    assert open_log(machine.crashed(lost), boot="after").leader_epoch == 7


def test_a_log_whose_maker_was_killed_keeps_its_name_once_it_was_opened(run: Run) -> None:
    """The maker dies between the rename of the draft and the sync of the directory above."""
    machine = machine_behind_the_last_rename(run, run.created_at).killed()
    open_log(machine, boot=BOOT).begin_epoch(0)
    lost = [DROPPED] * len(machine.disk.unsynced())
    assert open_log(machine.crashed(lost), boot="after").leader_epoch == 0


def test_a_batch_that_a_full_disk_refused_does_not_come_back_with_a_power_loss(run: Run) -> None:
    run.log.roll()
    run.append(padding=5)
    run.sync()
    end = run.log.written_end
    first, second = (make_batch(text, 1, 300, (-1, -1, -1)) for text in ("refused", "as well"))
    run.storage.faults.capacity_bytes = run.storage.disk.used_bytes() + len(first) + 100
    answers = run.log.append([first, second], leader_epoch=run.log.leader_epoch, now_ms=NOW_MS)
    assert [type(answer) for answer in answers] == [StorageFullError] * 2
    for machine in run.storage.crash_states(random.Random(0)):
        assert open_log(machine, boot="after").written_end == end


def test_a_truncation_of_several_segments_leaves_no_hole(run: Run) -> None:
    """Of two segments that are removed, the names may vanish in either order."""
    for _ in range(3):
        run.log.roll()
        run.append()
        run.sync()
    begun_at = run.now
    offset = run.ledger.entries[-3].base_offset
    run.log.truncate(offset, now_ms=NOW_MS)
    disk = run.before.copy()
    for operation in run.storage.disk.operations[disk.sequence :]:
        disk.apply(operation)
        if disk.sequence <= begun_at or not isinstance(operation, Unlink):
            continue
        unsynced = disk.unsynced()
        for kept_name in [one for one in unsynced if isinstance(one, Unlink)]:
            fates = [DROPPED if one is kept_name else KEPT for one in unsynced]
            log = open_log(MemoryStorage(disk).crashed(fates), boot="after")
            assert log.recovery.quarantined == ()
            assert log.written_end >= offset
