"""A real process on a disk that fails: no acknowledgement past what is durable, and a way back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_stream.actors.hosted import log_options
from ray_stream.boot import boot_id
from ray_stream.log.directory import partition_path
from ray_stream.log.offline import read_marker
from ray_stream.log.repair import repair_partition
from ray_stream.log.storage import DiskStorage
from tests.crash.host_process import TOPIC_ID, assigned

REPOSITORY = Path(__file__).parents[2]


class Child:
    """The process, and what it answers."""

    def __init__(self, root: Path, epoch: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.host_process", str(root), str(epoch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )

    def __call__(self, *command: Any) -> list[Any]:  # noqa: ANN401 - JSON
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait(10)}"
        answer: list[Any] = json.loads(line)
        return answer


@contextmanager
def running(root: Path, epoch: int) -> Iterator[Child]:
    """A host that is killed with `kill -9` at the end."""
    child = Child(root, epoch)
    with child.process:
        try:
            yield child
        finally:
            child.process.kill()


def values(count: int, name: str) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The partition's directory."""
    return Path(partition_path(str(tmp_path), TOPIC_ID, 0))


def lose_the_page_cache(synced: dict[str, int]) -> None:
    """What the disk shows once the cache is gone: zeros where no sync brought anything."""
    for name, length in synced.items():
        with Path(name).open("r+b") as file:
            size = file.seek(0, 2)
            file.truncate(length)
            file.truncate(size)


def test_what_a_failed_sync_left_behind_is_never_acknowledged_served_or_brought_back(
    tmp_path: Path, path: Path
) -> None:
    sure, lost = values(3, "sure"), values(3, "lost")
    with running(tmp_path, 0) as host:
        assert host("append", sure) == ["at", 0]
        host("fail_sync")
        assert host("append", lost)[:2] == ["error", "StorageOfflineError"]
        assert host("append", ["behind"])[:2] == ["error", "StorageOfflineError"]
        assert host("read", 0) == ["values", sure, 3]
        synced = host("synced")[1]
    lose_the_page_cache(synced)
    with running(tmp_path, 1) as host:
        kind, reason = host("served")
        assert kind == "reason"
        assert reason.startswith("StorageOfflineError")
        assert "ray-stream repair" in reason
        assert host("append", ["more"])[:2] == ["error", "NotLeaderOrFollowerError"]
    assert read_marker(DiskStorage(), str(path)) is not None
    options = log_options(assigned(never_led=False))
    report = repair_partition(DiskStorage(), str(path), options, boot_id=boot_id(), now_ms=1)
    assert (report.kept_end, report.lost) == (3, ())
    with running(tmp_path, 2) as host:
        assert host("served") == ["reason", ""]
        assert host("read", 0) == ["values", sure, 3]
        assert host("append", ["again"]) == ["at", 3]
        assert host("read", 0) == ["values", [*sure, "again"], 4]


def test_a_full_disk_refuses_appends_serves_reads_and_goes_on_when_there_is_room(
    tmp_path: Path, path: Path
) -> None:
    big = ["x" * 2_000] * 4
    with running(tmp_path, 0) as host:
        assert host("append", big) == ["at", 0]
        (segment,) = path.glob("*.log")
        host("file_size_max", segment.stat().st_size + 1_000)  # a part of the next batch fits
        for _ in range(3):
            assert host("append", big)[:2] == ["error", "StorageFullError"]
            assert host("read", 0) == ["values", big, 4]
        host("file_size_max", -1)
        assert host("append", big) == ["at", 4]
        assert host("read", 0) == ["values", big * 2, 8]
    with running(tmp_path, 1) as host:
        assert host("read", 0) == ["values", big * 2, 8]
