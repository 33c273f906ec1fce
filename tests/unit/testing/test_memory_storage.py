"""What survives a power loss in the model, and what an injected fault looks like."""

import random

import pytest

from ray_stream.errors import StorageError, StorageFullError
from ray_stream.log.storage import read_file, replace_file
from ray_stream.testing.disk import (
    DROPPED,
    KEPT,
    ZEROED,
    Disk,
    FailedSync,
    Fate,
    FateKind,
    Write,
)
from ray_stream.testing.memory import MemoryStorage


def storage_with(path: str, content: bytes) -> MemoryStorage:
    """A storage in which that file and its name are durable."""
    storage = MemoryStorage()
    storage.make_directory("/d")
    replace_file(storage, path, content)
    return storage


def contents_after_crashes(storage: MemoryStorage, path: str) -> set[bytes | None]:
    found = set()
    for state in storage.crash_states(random.Random(0)):
        found.add(read_file(state, path) if state.exists(path) else None)
    return found


def test_synced_bytes_under_a_synced_name_survive_every_power_loss() -> None:
    storage = storage_with("/d/f", b"all of it")
    storage.open("/d/other", create=True).write([b"x"], 0)
    assert contents_after_crashes(storage, "/d/f") == {b"all of it"}


def test_an_unsynced_write_is_kept_dropped_zeroed_or_torn_between_sectors() -> None:
    storage = storage_with("/d/f", b"a" * 500)
    storage.open("/d/f").write([b"b" * 600], 500)
    head, tail = b"b" * 12, b"b" * 588
    assert contents_after_crashes(storage, "/d/f") == {
        b"a" * 500 + head + tail,
        b"a" * 500,
        b"a" * 500 + bytes(600),
        b"a" * 500 + head,
        b"a" * 500 + bytes(12) + tail,
    }


def test_an_overwrite_is_torn_without_harm_to_its_neighbours() -> None:
    storage = storage_with("/d/f", b"a" * 1536)
    storage.open("/d/f").write([b"b" * 1024], 256)
    scattered = storage.crashed([Fate(FateKind.SCATTERED, 0b101)])
    assert read_file(scattered, "/d/f") == (
        b"a" * 256 + b"b" * 256 + b"a" * 512 + b"b" * 256 + b"a" * 256
    )


def test_writes_survive_independently_of_their_order() -> None:
    storage = storage_with("/d/f", b"")
    file = storage.open("/d/f")
    file.write([b"one"], 0)
    file.write([b"two"], 3)
    assert read_file(storage.crashed([DROPPED, KEPT]), "/d/f") == b"\0\0\0two"
    assert read_file(storage.crashed([KEPT, ZEROED]), "/d/f") == b"one\0\0\0"


def test_a_synced_file_is_lost_when_its_directory_was_not_synced() -> None:
    storage = MemoryStorage()
    storage.make_directory("/d")
    file = storage.open("/d/f", create=True)
    file.write([b"content"], 0)
    file.sync()
    assert contents_after_crashes(storage, "/d/f") == {b"content", None}
    storage.sync_directory("/d")
    assert contents_after_crashes(storage, "/d/f") == {b"content"}


def test_a_rename_is_atomic_and_durable_only_with_its_directory() -> None:
    storage = storage_with("/d/f", b"old")
    fresh = storage.open("/d/f.tmp", create=True)
    fresh.write([b"new"], 0)
    fresh.sync()
    storage.rename("/d/f.tmp", "/d/f")
    assert contents_after_crashes(storage, "/d/f") == {b"old", b"new"}


def test_an_unlinked_file_may_be_back_until_its_directory_is_synced() -> None:
    storage = storage_with("/d/f", b"content")
    storage.unlink("/d/f")
    assert contents_after_crashes(storage, "/d/f") == {b"content", None}
    storage.sync_directory("/d")
    assert contents_after_crashes(storage, "/d/f") == {None}


def test_an_unsynced_truncate_may_not_have_happened() -> None:
    storage = storage_with("/d/f", b"content")
    storage.open("/d/f").truncate(3)
    assert contents_after_crashes(storage, "/d/f") == {b"content", b"con"}


def test_replacing_a_file_leaves_the_old_or_the_new_content_at_every_crash_point() -> None:
    storage = storage_with("/d/f", b"old")
    before = storage.disk.copy()
    first = len(before.operations)
    replace_file(storage, "/d/f", b"new")
    found = set()
    for operation in storage.disk.operations[first:]:
        before.apply(operation)
        found |= contents_after_crashes(MemoryStorage(before), "/d/f")
    assert found == {b"old", b"new"}
    assert contents_after_crashes(storage, "/d/f") == {b"new"}


def test_replayed_operations_give_the_same_disk() -> None:
    storage = storage_with("/d/f", b"old")
    storage.open("/d/f").write([b"more"], 3)
    again = Disk()
    for operation in storage.disk.operations:
        again.apply(operation)
    assert again.operations == storage.disk.operations
    assert again.files == storage.disk.files
    assert again.directories == storage.disk.directories


def test_a_sync_issued_earlier_does_not_cover_later_writes() -> None:
    storage = storage_with("/d/f", b"")
    file = storage.open("/d/f")
    file.write([b"one"], 0)
    issued = storage.disk.sequence
    file.write([b"two"], 3)
    with storage.syncs_issued_at(issued):
        file.sync()
    assert contents_after_crashes(storage, "/d/f") == {b"one", b"onetwo", b"one\0\0\0"}


def test_a_failed_sync_loses_the_data_and_hides_it_until_the_cache_is_dropped() -> None:
    storage = storage_with("/d/f", b"synced ")
    file = storage.open("/d/f")
    file.write([b"lost"], 7)
    storage.faults.fail_sync(path_part="/d/f")
    with pytest.raises(StorageError):
        file.sync()
    file.sync()
    assert file.read(100, 0) == b"synced lost"
    assert contents_after_crashes(storage, "/d/f") == {b"synced \0\0\0\0"}
    file.drop_cache()
    assert file.read(100, 0) == b"synced \0\0\0\0"


def test_a_failed_sync_that_saved_nothing_leaves_zeros_of_the_full_length() -> None:
    storage = storage_with("/d/f", b"synced ")
    file = storage.open("/d/f")
    file.write([b"lost"], 7)
    (write,) = storage.disk.unsynced()
    assert isinstance(write, Write)
    storage.disk.apply(FailedSync(write.inode, (DROPPED,)))
    assert contents_after_crashes(storage, "/d/f") == {b"synced ", b"synced \0\0\0\0"}
    file.drop_cache()
    assert file.read(100, 0) == b"synced \0\0\0\0"
    file.sync()
    assert contents_after_crashes(storage, "/d/f") == {b"synced \0\0\0\0"}


def test_a_full_disk_refuses_a_write_and_the_file_keeps_its_length() -> None:
    storage = storage_with("/d/f", b"12345")
    storage.faults.capacity_bytes = 8
    file = storage.open("/d/f")
    with pytest.raises(StorageFullError):
        file.write([b"6789"], 5)
    assert file.read(100, 0) == b"12345"
    assert storage.free_bytes("/d") == 3
    file.write([b"678"], 5)
    with pytest.raises(StorageFullError):
        storage.open("/d/g", create=True)
    storage.unlink("/d/f")
    assert storage.free_bytes("/d") == 8


def test_a_refused_write_may_leave_its_first_part_to_a_crash() -> None:
    storage = storage_with("/d/f", b"12345")
    storage.faults.capacity_bytes = 8
    with pytest.raises(StorageFullError):
        storage.open("/d/f").write([b"6789"], 5)
    assert b"12345678" in contents_after_crashes(storage, "/d/f")


def test_planned_faults_hit_the_nth_call_of_their_path_only() -> None:
    storage = storage_with("/d/f", b"")
    storage.faults.fail_write(2, "/d/f")
    storage.faults.unreadable = "/d/g"
    file, other = storage.open("/d/f"), storage.open("/d/g", create=True)
    file.write([b"1"], 0)
    other.write([b"x"], 0)
    with pytest.raises(StorageError):
        file.write([b"2"], 1)
    assert file.read(10, 0) == b"1"
    with pytest.raises(StorageError):
        other.read(1, 0)
    storage.faults.heal()
    assert other.read(1, 0) == b"x"


def test_a_flipped_bit_stays_flipped() -> None:
    storage = storage_with("/d/f", b"\0")
    storage.flip_bit("/d/f", 0, 3)
    assert contents_after_crashes(storage, "/d/f") == {b"\x08"}


def test_a_lock_is_held_until_it_is_released_or_its_process_dies() -> None:
    one = MemoryStorage()
    other = one.another_process()
    lock = one.lock("/lock", 0)
    assert lock is not None
    assert one.lock("/lock", 0) is None
    assert other.lock("/lock", 0) is None
    assert other.lock("/lock", 1) is not None
    lock.release()
    assert other.lock("/lock", 0) is not None
    other.kill()
    assert one.lock("/lock", 0) is not None
    assert one.lock("/lock", 1) is not None


def test_a_killed_machine_keeps_what_was_written_and_frees_its_locks() -> None:
    storage = MemoryStorage()
    storage.lock("/lock", 0)
    storage.open("/f", create=True).write([b"unsynced"], 0)
    after = storage.killed()
    assert read_file(after, "/f") == b"unsynced"
    assert after.lock("/lock", 0) is not None
    after.open("/f").write([b"elsewhere"], 0)
    assert read_file(storage, "/f") == b"unsynced"
    assert not after.crashed([DROPPED] * len(after.disk.unsynced())).exists("/f")


def test_a_killed_process_that_goes_on_is_found_out() -> None:
    storage = MemoryStorage()
    file = storage.open("/f", create=True)
    storage.kill()
    with pytest.raises(AssertionError):
        file.write([b"x"], 0)
