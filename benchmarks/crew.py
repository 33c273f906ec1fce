"""Client processes of a benchmark, and what they do together.

Owns: starting and ending them, letting them begin at once, and rates and latencies over all of
them. Refuses: what each of them does (`worker`).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import PARTITIONS, Peer

WORKER = Path(__file__).parent / "worker.py"
END_S = 60.0
SETTLE = 10
"""The first 1/10 of an open loop is not counted."""


class Worker:
    """One process."""

    def __init__(self, peer: Peer) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), peer.name, json.dumps(peer.where())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, value: object) -> None:
        """A line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:  # noqa: ANN401 - whatever it says
        """A line from it."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line[:1] in b'{"':  # what libraries print is not for us
                return json.loads(line)
        raise RuntimeError(f"a worker ended with status {self._process.wait(END_S)}")

    def end(self) -> None:
        """Have it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)


class Crew:
    """Three producers and three consumers of one peer."""

    def __init__(self, peer: Peer, each: int = 3) -> None:
        self.peer = peer
        self._workers = [Worker(peer) for _ in range(2 * each)]
        try:
            for worker in self._workers:
                assert worker.hear() == "up"
        except BaseException:
            self.end()
            raise
        self._producers, self._consumers = self._workers[:each], self._workers[each:]

    def end(self) -> None:
        """End all."""
        for worker in self._workers:
            worker.end()

    def at_once(self, topic: str, size: int, count: int) -> float:
        """Records a second from the first that is sent to the last that is read."""
        each = len(self._producers)
        jobs: list[tuple[Worker, dict[str, Any]]] = [
            (one, {"job": "send", "topic": topic, "size": size, "count": count // each})
            for one in self._producers
        ]
        for number, one in enumerate(self._consumers):
            share = list(range(number, PARTITIONS, len(self._consumers)))
            jobs.append((one, {"job": "read", "topic": topic, "partitions": share, "ends": each}))
        told = all_done(jobs)
        sent = count // each * each
        read = sum(one["value"] for one in told[each:])
        assert read == sent, f"{sent} records were sent and {read} read"
        return sent / (max(one["ended"] for one in told) - min(one["begun"] for one in told))

    def open_loop(self, topic: str, size: int, count: int, per_second: int) -> list[float]:
        """Seconds from a record's appointed time until it was in hand, sorted."""
        open_loop = {"topic": topic, "count": count}
        _, told = all_done(
            [
                (
                    self._producers[0],
                    {"job": "send_open", "size": size, "per_second": per_second, **open_loop},
                ),
                (self._consumers[0], {"job": "read_open", **open_loop}),
            ]
        )
        return sorted(told["times"][count // SETTLE :])


def all_done(jobs: list[tuple[Worker, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What came of jobs that began at once."""
    for worker, job in jobs:
        worker.say(job)
    for worker, _ in jobs:
        assert worker.hear() == "ready"
    for worker, _ in jobs:
        worker.say("go")
    return [worker.hear() for worker, _ in jobs]
