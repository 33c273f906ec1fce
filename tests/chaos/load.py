"""Four producers and a consumer at work on a topic, and what they were told, for the tests.

Everything they were told is judged by the history checker; how long they had to wait after a kill
is measured here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ray_stream import Cluster
from ray_stream.testing.checker import Report, check
from ray_stream.testing.history import AnyEvent, Final, Position, Read, read_history
from ray_stream.types import TopicPartition
from tests.chaos.worker import place
from tests.ray.drivers import CLEARED, family, kill, wait_until_ended

POLL_S = 0.02
END_S = 60.0
REPOSITORY = Path(__file__).parents[2]


class Address(Protocol):
    """What workers find a cluster by."""

    @property
    def name(self) -> str:
        """Of the cluster."""

    @property
    def address(self) -> str:
        """Of its Ray."""


class Worker:
    """One process of `tests.chaos.worker`."""

    def __init__(self, job: str, name: str, cluster: Address, topic: str, directory: Path) -> None:
        self.name = name
        self.is_producer = job == "produce"
        self.errors = directory / f"{name}.stderr"
        environment = {key: value for key, value in os.environ.items() if key not in CLEARED}
        arguments = [job, name, cluster.name, cluster.address, topic, str(directory)]
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                cwd=REPOSITORY,
                env=environment,
            )
        self._times = directory / f"{name}.times"
        self._read = 0
        self.samples: list[tuple[int, float, float]] = []
        """(partition, sent, acknowledged) of every burst's first record."""

    def look(self) -> None:
        """Take in the samples that were written since."""
        assert self.process.poll() is None, f"{self.name} ended:\n{self.complaints()}"
        if not self._times.exists():
            return
        with self._times.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            partition, sent, acknowledged = line.split()
            self.samples.append((int(partition), float(sent), float(acknowledged)))

    def again(self, since: float, partitions: Sequence[int]) -> float | None:
        """When each partition had acknowledged one that was sent after `since`; None: not yet."""
        first: dict[int, float] = {}
        for partition, sent, acked in self.samples:
            if sent > since and partition in partitions:
                first[partition] = min(acked, first.get(partition, acked))
        return max(first.values()) if len(first) == len(partitions) else None

    def in_flight(self, when: float, partitions: Sequence[int]) -> int:
        """Bursts of which the first record was sent before and acknowledged after."""
        return sum(
            sent < when < acked and partition in partitions
            for partition, sent, acked in self.samples
        )

    def forget_before(self, when: float) -> None:
        """Drop samples that no question will be about."""
        self.samples = [one for one in self.samples if one[2] > when]

    def end(self) -> None:
        """Have it end in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """`kill -9` it and its children."""
        pids = family(self.process.pid)
        kill(pids)
        self.process.wait(END_S)
        self.end()
        wait_until_ended(pids)

    def complaints(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")[-4000:]


class Load:
    """Producers and consumers on one topic, until the block is left."""

    def __init__(
        self, cluster: Address, topic: str, directory: Path, *, producers: int, consumers: int
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._directory = directory
        self._made = 0
        self._workers: list[Worker] = []
        self._wanted = ["produce"] * producers + ["consume"] * consumers

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.kill)
            for job in self._wanted:
                self.add(job)
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def add(self, job: str) -> Worker:
        """One more worker, with a name of its own."""
        self._made += 1
        name = f"{job}-{self._made}"
        worker = Worker(job, name, self._cluster, self._topic, self._directory)
        self._workers.append(worker)
        return worker

    @property
    def producers(self) -> list[Worker]:
        return [one for one in self._workers if one.is_producer and one.process.poll() is None]

    def wait_for_acknowledgements(
        self, since: float, partitions: Sequence[int], within_s: float
    ) -> float:
        """Until each partition acknowledged to each producer what it sent after `since`.

        Returns:
            Seconds from `since` to the last of these first acknowledgements.
        """
        while True:
            for worker in self.producers:
                worker.look()
            again = [worker.again(since, partitions) for worker in self.producers]
            if None not in again:
                return max(one for one in again if one is not None) - since
            waited = time.monotonic() - since
            late = [one.name for one, at in zip(self.producers, again, strict=True) if at is None]
            assert waited < within_s, f"not acknowledged again to {late} for {waited:.1f} s"
            time.sleep(POLL_S)

    def in_flight(self, when: float, partitions: Sequence[int]) -> int:
        """Timed records that were sent before `when` and acknowledged after it."""
        return sum(one.in_flight(when, partitions) for one in self.producers)

    def forget_before(self, when: float) -> None:
        """Drop samples that no question will be about."""
        for worker in self._workers:
            worker.forget_before(when)

    def replace(self, worker: Worker) -> Worker:
        """`kill -9` a worker and start another of its kind."""
        worker.kill()
        self._workers.remove(worker)
        return self.add("produce" if worker.is_producer else "consume")

    def finish(self) -> None:
        """Have everybody deliver what is under way, and end."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            status = worker.process.wait(END_S)
            assert status == 0, f"{worker.name} ended with {status}:\n{worker.complaints()}"

    def kill(self) -> None:
        """`kill -9` whoever still runs."""
        pids = [pid for one in self._workers for pid in family(one.process.pid)]
        kill(pids)
        for worker in self._workers:
            worker.process.wait(END_S)
            worker.end()
        self._workers = []


def judge(cluster: Cluster, topic: str, directory: Path) -> Report:
    """Read everything once more, and judge the whole history."""
    events = [*read_history(sorted(directory.glob("*.history"))), *final_read(cluster, topic)]
    return check(events)


def final_read(cluster: Cluster, topic: str) -> list[AnyEvent]:
    """All records of a topic that nobody writes to, as a consumer that had not been there."""
    events: list[AnyEvent] = []
    partitions = [
        TopicPartition(topic, one.partition) for one in cluster.describe_topic(topic).partitions
    ]
    with cluster.consumer(until="end") as consumer:
        consumer.assign(partitions, "earliest")
        ends = consumer.end_offsets(partitions)
        events += [Position("final", place(topic, one.partition), 0) for one in partitions]
        expected = {one.partition: 0 for one in partitions}
        for record in consumer:
            assert record.value is not None
            assert record.offset == expected[record.partition], "an offset without a record"
            expected[record.partition] += 1
            name = place(topic, record.partition)
            events.append(Read("final", name, [(record.offset, record.value.decode())]))
    events += [Final("final", place(topic, one.partition), ends[one]) for one in partitions]
    return events
