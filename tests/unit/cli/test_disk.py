"""`verify` and `repair` on directories with nothing running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ray_stream.cli.application import application
from ray_stream.config import TopicConfig
from ray_stream.errors import StorageError
from ray_stream.log import directory
from ray_stream.log.directory import Identity
from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.storage import DiskStorage
from ray_stream.testing.batches import OPTIONS, batch_of

BOOT = "this boot"
NOW_MS = 1_700_000_000_000
DIRECTORY_ID = "d" * 32
PER_BATCH = 3


def run(*arguments: object) -> Result:
    return CliRunner().invoke(application, [str(one) for one in arguments])


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The data directory of a stopped cluster with one partition of 30 records."""
    storage = DiskStorage()
    root = tmp_path / "data" / "default"
    identity = Identity(
        cluster_id="c" * 32, broker_id=0, directory_id=DIRECTORY_ID, host_id="a host"
    )
    path = directory.make_directory(storage, str(root), identity)
    partition = directory.partition_path(path, OPTIONS.topic_id, 0)
    log = PartitionLog.create(storage, partition, OPTIONS, boot_id=BOOT, now_ms=NOW_MS)
    log.begin_epoch(0)
    for number in range(10):
        batch = batch_of([b"%d" % number] * PER_BATCH)
        log.append([batch], leader_epoch=0, now_ms=NOW_MS)
        job = log.sync_job()
        assert job is not None
        job.run()
        log.synced(job)
    log.close()
    directory.write_partition_hint(storage, partition, OPTIONS.topic, 1, TopicConfig())
    return tmp_path / "data"


def segment(data_dir: Path) -> Path:
    (found,) = data_dir.rglob("*.log")
    return found


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_a_sound_directory_has_no_findings(data_dir: Path) -> None:
    result = run("verify", data_dir)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("no findings")


def test_it_is_found_at_whatever_level_it_is_named(data_dir: Path) -> None:
    for path in (data_dir, data_dir / "default", data_dir / "default" / DIRECTORY_ID):
        assert run("verify", path).exit_code == 0


def test_a_flipped_bit_is_named_by_file_and_record_range(data_dir: Path) -> None:
    path = segment(data_dir)
    size = path.stat().st_size // 10
    flip(path, 4 * size + 200)
    result = run("verify", data_dir)
    assert result.exit_code == 1
    assert f"flights-0: corrupt: {path} at byte {4 * size}, records [12, 15)" in result.stdout


def test_findings_are_there_for_programs_too(data_dir: Path) -> None:
    path = segment(data_dir)
    flip(path, 200)
    result = run("verify", "--json", data_dir)
    assert result.exit_code == 1
    found = [one for one in json.loads(result.stdout) if one["kind"] == "corrupt"]
    assert [(one["partition"], one["path"]) for one in found] == [("flights-0", str(path))]
    assert (found[0]["first_offset"], found[0]["next_offset"]) == (0, 3)


def test_a_damaged_identity_is_named(data_dir: Path) -> None:
    identity = data_dir / "default" / DIRECTORY_ID / "identity.json"
    flip(identity, 30)
    result = run("verify", data_dir)
    assert result.exit_code == 1
    assert f"unusable: {identity}" in result.stdout


def test_a_lost_identity_is_a_finding_and_not_an_empty_directory(data_dir: Path) -> None:
    (data_dir / "default" / DIRECTORY_ID / "identity.json").unlink()
    result = run("verify", data_dir)
    assert result.exit_code == 1
    assert "is missing" in result.stdout


def test_a_directory_without_logs_is_no_success(tmp_path: Path) -> None:
    for verb in ("verify", "repair"):
        result = run(verb, tmp_path)
        assert result.exit_code == 1
        assert "holds no broker directory" in result.stderr


def test_a_directory_in_use_is_left_alone(data_dir: Path) -> None:
    """Another process holds the lock: verifying a log that is written to would find ghosts."""
    root = data_dir / "default" / DIRECTORY_ID
    program = (
        "import sys\n"
        "from ray_stream.log import locks\n"
        "from ray_stream.log.storage import DiskStorage\n"
        f"lock = locks.try_lock(DiskStorage(), {str(root)!r}, locks.BROKER_POSITION)\n"
        "print(lock is not None, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        for verb in ("verify", "repair"):
            result = run(verb, data_dir)
            assert result.exit_code == 1
            assert "is in use" in result.stderr
        holder.communicate("")
    assert run("verify", data_dir).exit_code == 0


def test_what_is_sound_needs_no_repair(data_dir: Path) -> None:
    before = segment(data_dir).read_bytes()
    result = run("repair", data_dir)
    assert result.exit_code == 0
    assert "nothing to repair" in result.stdout
    assert segment(data_dir).read_bytes() == before


def test_a_partition_whose_sync_failed_is_brought_back(data_dir: Path) -> None:
    """Nothing behind the last good sync was acknowledged; everything in front of it is kept."""
    storage = DiskStorage()
    partition = str(segment(data_dir).parent)
    log = PartitionLog.open(storage, partition, OPTIONS, boot_id=BOOT, now_ms=NOW_MS)
    log.begin_epoch(1)
    log.append([batch_of([b"never acknowledged"])], leader_epoch=1, now_ms=NOW_MS)
    job = log.sync_job()
    assert job is not None
    log.sync_failed(job, StorageError("sync failed: Input/output error"))
    log.close()

    found = run("verify", data_dir)
    assert found.exit_code == 1
    assert "flights-0: offline" in found.stdout

    result = run("repair", "--json", data_dir)
    assert result.exit_code == 0
    (report,) = json.loads(result.stdout)
    assert (report["log"], report["kept_end"], report["lost"]) == ("flights-0", 30, [])
    assert report["bytes_cut"] > 0

    assert run("verify", data_dir).exit_code == 0
    log = PartitionLog.open(storage, partition, OPTIONS, boot_id=BOOT, now_ms=NOW_MS)
    assert (log.offline, log.readable_end) == ("", 30)
    log.close()
