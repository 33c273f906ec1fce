"""Broker directories: whose they are, who may write, and that nothing is deleted unasked."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ray_stream.config import TopicConfig
from ray_stream.errors import (
    CorruptMetadataError,
    DataDirSharedError,
    DataDirVersionError,
    InconsistentClusterIdError,
)
from ray_stream.log import directory, locks
from ray_stream.log.directory import Identity
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import DiskStorage, read_file
from ray_stream.log.verify import FindingKind, verify_directory
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import TopicIdPartition

TOPIC_ID = "0123456789abcdef0123456789abcdef"
IDENTITY = Identity(
    cluster_id="c" * 32,
    broker_id=1,
    directory_id="d" * 32,
    host_id="host-1",
    controller_epoch=3,
    metadata_directory_id="e" * 32,
)
ROOT = f"/data/{IDENTITY.directory_id}"
HOLDER = locks.Holder(
    pid=12,
    start_time=345,
    boot_id="boot",
    raylet_pid=6,
    raylet_start_time=7,
    ray_address="127.0.0.1:6379",
    name="default/host/0",
)


def made() -> MemoryStorage:
    storage = MemoryStorage()
    assert directory.make_directory(storage, "/data", IDENTITY) == ROOT
    return storage


# --- identity ------------------------------------------------------------------------------------


def test_an_identity_is_durable_once_the_directory_is_made() -> None:
    storage = made()
    assert storage.disk.unsynced() == []
    assert directory.read_identity(storage, ROOT) == IDENTITY


def test_making_a_directory_again_keeps_what_is_there() -> None:
    storage = made()
    seen = directory.see_controller_epoch(storage, ROOT, IDENTITY, 9)
    directory.make_directory(storage, "/data", IDENTITY)
    assert directory.read_identity(storage, ROOT) == seen


def test_a_controller_epoch_never_goes_back() -> None:
    storage = made()
    seen = directory.see_controller_epoch(storage, ROOT, IDENTITY, 9)
    assert directory.see_controller_epoch(storage, ROOT, seen, 4) is seen
    assert storage.disk.unsynced() == []
    assert directory.read_identity(storage, ROOT).controller_epoch == 9


def test_every_flipped_bit_of_an_identity_is_refused() -> None:
    original = made()
    path = f"{ROOT}/identity.json"
    for byte in range(len(read_file(original, path))):
        storage = original.killed()
        storage.flip_bit(path, byte, byte % 8)
        try:
            same = directory.read_identity(storage, ROOT) == IDENTITY
        except (CorruptMetadataError, DataDirVersionError):
            continue
        assert same, "white space may flip into other white space"


def test_a_newer_format_is_refused_before_its_fields_are_looked_at() -> None:
    storage = made()
    content = {"format_version": 2, "something": "else"}
    sealed = content | {"crc32c": directory._checksum(dict(content))}
    file = storage.open(f"{ROOT}/identity.json")
    file.truncate(0)
    file.write([msgspec.json.encode(sealed)], 0)
    with pytest.raises(DataDirVersionError, match="newer program"):
        directory.read_identity(storage, ROOT)


def test_a_directory_of_another_cluster_is_refused() -> None:
    with pytest.raises(InconsistentClusterIdError, match="data_dir"):
        directory.check_identity(IDENTITY, ROOT, cluster_id="x", host_id="host-1")


def test_a_directory_that_two_hosts_see_is_refused() -> None:
    with pytest.raises(DataDirSharedError, match="shared file system"):
        directory.check_identity(IDENTITY, ROOT, cluster_id="", host_id="host-2")


def test_a_scan_finds_directories_and_what_is_wrong_with_them() -> None:
    storage = made()
    storage.make_directory(f"{ROOT}/metadata")
    storage.make_directory("/data/nothing of ours")
    storage.open("/data/cluster.json", create=True)
    for name in ("copied", "damaged", "newer"):
        storage.make_directory(f"/data/{name}")
    raw = read_file(storage, f"{ROOT}/identity.json")
    storage.open("/data/copied/identity.json", create=True).write([raw], 0)
    storage.open("/data/damaged/identity.json", create=True)
    storage.open("/data/newer/identity.json", create=True).write([raw], 0)
    storage.open("/data/newer/shared.wal", create=True)
    found = {one.path: one for one in directory.scan(storage, "/data")}
    assert found[ROOT].identity == IDENTITY
    assert found[ROOT].has_metadata
    assert isinstance(found["/data/copied"].problem, CorruptMetadataError)
    assert isinstance(found["/data/damaged"].problem, CorruptMetadataError)
    assert isinstance(found["/data/newer"].problem, DataDirVersionError)
    assert len(found) == 4
    assert directory.scan(storage, "/nowhere") == []


# --- partitions ----------------------------------------------------------------------------------


def test_the_names_of_partition_directories() -> None:
    name = directory.partition_name(TOPIC_ID, 12)
    assert directory.parse_partition_name(name) == TopicIdPartition(TOPIC_ID, 12)
    for other in ("metadata", "lock", f"{TOPIC_ID}-", f"{TOPIC_ID}-01", f"{TOPIC_ID}-x", "a-1"):
        assert directory.parse_partition_name(other) is None


def test_hints_are_read_back_and_may_be_missing_or_broken() -> None:
    storage = made()
    path = directory.partition_path(ROOT, TOPIC_ID, 0)
    storage.make_directory(path)
    assert directory.read_partition_hint(storage, path) is None
    directory.write_partition_hint(storage, path, "flights", 6, TopicConfig())
    hint = directory.read_partition_hint(storage, path)
    assert hint is not None
    assert (hint.topic, hint.partition_count, hint.config) == ("flights", 6, TopicConfig())
    storage.open(f"{path}/partition.json").truncate(9)
    assert directory.read_partition_hint(storage, path) is None


def test_a_stray_is_put_aside_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    storage, root = DiskStorage(), tmp_path / "root"
    names = []
    for number in range(2):
        stray = root / directory.partition_name(TOPIC_ID, 0)
        stray.mkdir(parents=True)
        (stray / "data").write_text(f"{number}")
        names.append(directory.quarantine_stray(storage, str(root), stray.name))
        assert not stray.exists()
    assert [(Path(name) / "data").read_text() for name in names] == ["0", "1"]
    assert directory.list_partitions(storage, str(root)) == []


def test_only_leftovers_of_creations_and_deletions_are_removed() -> None:
    storage = made()
    name = directory.partition_name(TOPIC_ID, 0)
    for leftover in (f"{name}.deleted", f"{name}.new"):
        storage.make_directory(f"{ROOT}/{leftover}")
        storage.open(f"{ROOT}/{leftover}/file", create=True)
    for other in (name, "mine.deleted", "metadata"):
        storage.make_directory(f"{ROOT}/{other}")
    assert directory.finish_deletes(storage, ROOT) == [f"{name}.deleted", f"{name}.new"]
    left = [name, "identity.json", "lock", "metadata", "mine.deleted"]
    assert storage.list_directory(ROOT) == left


# --- verify --------------------------------------------------------------------------------------


def test_a_whole_directory_is_verified_and_every_finding_names_its_place() -> None:
    storage = made()
    for path in (f"{ROOT}/metadata", directory.partition_path(ROOT, TOPIC_ID, 0)):
        log = PartitionLog.create(storage, path, log_options(), boot_id="a", now_ms=1)
        log.begin_epoch(1)
        log.append([batch_of([b"x"])] * 3, leader_epoch=1, now_ms=1)
        log.close()
    assert list(verify_directory(storage, ROOT)) == []
    storage.flip_bit(f"{ROOT}/identity.json", 20)
    for path in (f"{ROOT}/metadata", directory.partition_path(ROOT, TOPIC_ID, 0)):
        storage.flip_bit(f"{path}/{0:020d}.log", 200)
    findings = list(verify_directory(storage, ROOT))
    assert [one.kind for one in findings] == [
        FindingKind.UNUSABLE,
        FindingKind.CORRUPT,
        FindingKind.CORRUPT,
    ]
    corrupt = str(findings[1])
    assert "metadata/00000000000000000000.log at byte " in corrupt
    assert "records [1, 2)" in corrupt or "records [0, 1)" in corrupt


# --- locks ---------------------------------------------------------------------------------------


def test_a_held_lock_is_refused_until_it_is_released(tmp_path: Path) -> None:
    storage, root = DiskStorage(), str(tmp_path)
    position = locks.partition_position(TOPIC_ID, 0)
    lock = locks.try_lock(storage, root, position)
    assert lock is not None
    assert locks.try_lock(storage, root, position) is None
    others = [locks.BROKER_POSITION, locks.METADATA_POSITION, position + 1]
    assert all(locks.try_lock(storage, root, other) is not None for other in others)
    lock.release()
    assert locks.try_lock(storage, root, position) is not None


def test_a_lock_survives_that_its_file_is_opened_and_closed_elsewhere(tmp_path: Path) -> None:
    storage, root = DiskStorage(), str(tmp_path)
    lock = locks.try_lock(storage, root, 0)
    locks.write_holder(storage, locks.holder_path(root), HOLDER)
    locks.read_holder(storage, locks.holder_path(root))
    assert locks.try_lock(storage, root, 0) is None
    assert lock is not None


def test_a_lock_ends_with_its_process_and_the_note_tells_whose_it_was(tmp_path: Path) -> None:
    storage, root = DiskStorage(), str(tmp_path)
    script = (
        "import sys, os\n"
        "from ray_stream.log import locks\n"
        "from ray_stream.log.storage import DiskStorage\n"
        "root = sys.argv[1]\n"
        "lock = locks.try_lock(DiskStorage(), root, 0)\n"
        "holder = locks.Holder(pid=os.getpid(), start_time=1, boot_id='b')\n"
        "locks.write_holder(DiskStorage(), locks.holder_path(root), holder)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert locks.try_lock(storage, root, 0) is None
        holder = locks.read_holder(storage, locks.holder_path(root))
        assert holder is not None
        assert holder.pid == process.pid
        process.kill()
        process.wait()
    assert locks.try_lock(storage, root, 0) is not None


def test_a_note_is_replaced_in_place_and_an_unreadable_one_is_none() -> None:
    storage = made()
    path = locks.holder_path(ROOT)
    assert locks.read_holder(storage, path) is None
    lock = locks.try_lock(storage, ROOT, 0)
    assert lock is not None
    locks.write_holder(storage, path, HOLDER)
    short = msgspec.structs.replace(HOLDER, name="", ray_address="")
    locks.write_holder(storage, path, short)
    assert locks.read_holder(storage, path) == short
    assert locks.try_lock(storage, ROOT, 0) is None, "the file is still the same"
    storage.open(path).truncate(5)
    assert locks.read_holder(storage, path) is None
