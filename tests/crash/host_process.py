"""A partition host in a process of its own, on a disk that fails when it is told to.

`python -m tests.crash.host_process ROOT EPOCH`: the host, its control and its loop as in a
partition actor, without Ray. Commands are lines of JSON on standard input, each answered by one:

* `["append", values]`: `["at", offset]` once acknowledged, or `["error", class, message]`
* `["read", offset]`: `["values", values, high_watermark]`, or an error
* `["fail_sync"]`: the next sync of a log's segment fails, once
* `["synced"]`: length of each segment's file when it was synced last
* `["file_size_max", bytes]`: the disk takes no longer files; -1: any length
* `["served"]`: why the partition is not served; empty: it is
"""

import json
import os
import queue
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_stream.actors.loop import HostLoop
from ray_stream.actors.partition import PartitionShell
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.boot import boot_id
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.errors import DataDirInUseError, StorageError
from ray_stream.log import locks
from ray_stream.log.storage import Buffer, DiskStorage, File, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.reader import decode_columns
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions
from ray_stream.rpc.messages import FetchPartition, FetchRequest, ProducePartition, ProduceRequest

TOPIC_ID = "c" * 32
DIRECTORY_ID = "dir"
ANSWER_S = 30.0
BYTES_MAX = 1 << 20


class Failures:
    """What the disk is about to do."""

    def __init__(self) -> None:
        self.sync_once = False
        self.synced: dict[str, int] = {}


class FailingFile:
    """A real file, of which one sync may fail."""

    def __init__(self, file: File, failures: Failures) -> None:
        self._file = file
        self._failures = failures

    @property
    def path(self) -> str:
        return self._file.path

    def sync(self) -> None:
        if self.path.endswith(".log"):
            if self._failures.sync_once:
                self._failures.sync_once = False
                raise StorageError(f"sync of {self.path} failed: Input/output error")
            size = self._file.size()
            self._file.sync()
            self._failures.synced[self.path] = size
        else:
            self._file.sync()

    def size(self) -> int:
        return self._file.size()

    def read(self, length: int, position: int) -> bytes:
        return self._file.read(length, position)

    def read_into(self, buffer: memoryview, position: int) -> int:
        return self._file.read_into(buffer, position)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        self._file.write(buffers, position)

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def drop_cache(self) -> None:
        self._file.drop_cache()

    def close(self) -> None:
        self._file.close()


class FailingStorage(DiskStorage):
    """The real disk, but for what `Failures` says."""

    def __init__(self, failures: Failures) -> None:
        super().__init__()
        self._failures = failures

    def open(self, path: str, *, create: bool = False) -> File:
        return FailingFile(super().open(path, create=create), self._failures)

    def open_for_reading(self, path: str) -> File:
        return FailingFile(super().open_for_reading(path), self._failures)


def take_lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    lock = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if lock is None:
        raise DataDirInUseError(f"{root} is in use")
    return lock


def assigned(*, never_led: bool) -> AssignedPartition:
    """The one partition."""
    config = TopicConfig(segment_bytes=64 * 1024)
    return AssignedPartition(
        TOPIC_ID, "topic", 0, DIRECTORY_ID, "0", never_led, config, 0, partition_count=1
    )


class Process:
    """The host behind its loop, asked from the main thread."""

    def __init__(self, root: Path, epoch: int) -> None:
        clock = SystemClock()
        self._epoch = epoch
        self._root = root
        self._failures = Failures()
        self._loop = HostLoop("partitions", clock)
        self._host = PartitionHost(clock, self._loop.sync)
        self._control = PartitionControl(
            self._host,
            FailingStorage(self._failures),
            clock,
            boot_id=boot_id(),
            interval_ms=200,
            locking=take_lock,
            spread=self._loop.spread,
            recovery_bytes=0,
        )
        self._loop.start(PartitionShell(self._host, self._control))
        self._reason = self._bring_up()

    def _ask(self, handler: Any, request: Any) -> Any:  # noqa: ANN401 - any of the services
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop.post(lambda: handler(request, answers.put))
        answer = answers.get(timeout=ANSWER_S)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _bring_up(self) -> str:
        spec = assigned(never_led=self._epoch == 0)
        prepared = self._ask(
            self._control.prepare, PreparePartitions({DIRECTORY_ID: str(self._root)}, [spec])
        )
        reason: str = prepared.results[0][2]
        if not reason:
            led = self._ask(self._control.lead, LeadPartitions([(TOPIC_ID, 0, self._epoch)]))
            reason = led.served[0].offline_reason
        return reason

    def answer(self, command: list[Any]) -> list[Any]:
        """Do what a line says."""
        match command:
            case ["append", values]:
                return self._append(values)
            case ["read", offset]:
                return self._read(offset)
            case ["fail_sync"]:
                self._failures.sync_once = True
                return ["will"]
            case ["synced"]:
                return ["synced", self._failures.synced]
            case ["file_size_max", length]:
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard if length < 0 else length, hard))
                return ["will"]
            case ["served"]:
                return ["reason", self._reason]
            case _:
                raise ValueError(f"no such command: {command}")

    def _append(self, values: list[str]) -> list[Any]:
        column = pa.array([value.encode() for value in values], pa.binary())
        batch = b"".join(build_batch(RecordColumns(value=column, base_timestamp=5)))
        address = ProducePartition(TOPIC_ID, 0, self._epoch)
        answer = self._ask(self._host.produce, ProduceRequest(-1, 1_000, [address], [batch]))
        result = answer.results[0]
        if result.error is not None:
            error = result.error.to_error()
            return ["error", type(error).__name__, str(error)]
        return ["at", result.base_offset]

    def _read(self, offset: int) -> list[Any]:
        address = FetchPartition(TOPIC_ID, 0, self._epoch, offset, BYTES_MAX)
        answer = self._ask(self._host.fetch, FetchRequest(0, 1, BYTES_MAX, [address]))
        result = answer.results[0]
        if result.error is not None:
            error = result.error.to_error()
            return ["error", type(error).__name__, str(error)]
        values = []
        for buffer in answer.batches:
            for header, payload in split_batches(buffer):
                columns = decode_columns(header, payload)
                values += [value.decode() for value in columns.column("value").to_pylist()]
        return ["values", values, result.high_watermark]


def main(arguments: list[str]) -> None:
    root, epoch = arguments
    process = Process(Path(root), int(epoch))
    for line in sys.stdin:
        os.write(1, json.dumps(process.answer(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
