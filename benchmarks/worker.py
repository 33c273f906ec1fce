"""One client process of a benchmark: it does what lines of JSON on its standard input say.

Run by `crew`: `python benchmarks/worker.py PEER WHERE`. For each job it prints `ready`, waits for a
line, and prints what came of it. Times are of the machine's monotonic clock, which all its
processes share.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from kafka_peer import Kafka
from peers import END, Go, Peer, RayStream

STAMP = 8
LOT = 10_000
"""Records between two looks at the clock."""
MOMENT_S = 0.2
"""Between the word and the first record of an open loop."""


def said(value: object) -> None:
    """Tell the one who started this process."""
    os.write(sys.__stdout__.fileno(), json.dumps(value).encode() + b"\n")


def go() -> None:
    """Say that everything is ready, and wait for the word."""
    said("ready")
    if not sys.stdin.readline():
        raise SystemExit("nobody is there any more")


def timed(work: Callable[[Go], Any]) -> dict[str, Any]:
    """Monotonic times of the word and of the end."""
    begun = 0.0

    def started() -> None:
        nonlocal begun
        go()
        begun = time.monotonic()

    value = work(started)
    return {"begun": begun, "ended": time.monotonic(), "value": value}


def send(peer: Peer, topic: str, size: int, count: int) -> dict[str, Any]:
    """A producer at full speed."""
    return timed(lambda go: peer.send_until_end(topic, b"x" * size, count, go))


def read(peer: Peer, topic: str, partitions: list[int], ends: int) -> dict[str, Any]:
    """A consumer at full speed, of some partitions."""
    return timed(lambda go: peer.read_until_end(topic, partitions, ends, go))


def send_open(peer: Peer, topic: str, size: int, count: int, per_second: int) -> dict[str, Any]:
    """Records at their appointed times, whatever became of those before; each says its time."""
    send, close = peer.opened(topic)
    go()
    start = time.monotonic_ns() + int(MOMENT_S * 1e9)
    late = 0
    filling = b"x" * (size - STAMP)
    for number in range(count):
        due = start + number * 1_000_000_000 // per_second
        while (left := due - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        send(due.to_bytes(STAMP, "big") + filling)
        late += time.monotonic_ns() - due
    close()
    return {"late_us": late / count / 1e3}


def read_open(peer: Peer, topic: str, count: int) -> dict[str, Any]:
    """How long after its appointed time each record was in hand."""
    take, close = peer.values(topic)
    go()
    times: list[float] = []
    while len(times) < count:
        values = take()
        now = time.monotonic_ns()
        times += [(now - int.from_bytes(one[:STAMP], "big")) / 1e9 for one in values]
    close()
    return {"times": times}


def flood(peer: RayStream, topic: str, size: int, seconds: float) -> dict[str, Any]:
    """A producer at full speed for so long; then `END` to every partition."""
    value, count = b"x" * size, 0
    with peer.producer() as producer:
        partitions = producer.partitions_for(topic)
        go()
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            for _ in range(LOT):
                producer.send(topic, value)
            count += LOT
        producer.flush()
        ended = time.monotonic()
        for partition in partitions:
            producer.send(topic, END, partition=partition)
    return {"records": count, "seconds": ended - begun}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "send": send,
    "read": read,
    "send_open": send_open,
    "read_open": read_open,
    "flood": flood,
}


def main(kind: str, where: dict[str, str]) -> None:
    """Do jobs until standard input is closed."""
    peer = {RayStream.name: RayStream, Kafka.name: Kafka}[kind].at(where)
    said("up")
    try:
        while line := sys.stdin.readline():
            job = json.loads(line)
            said(JOBS[job.pop("job")](peer, **job))
    finally:
        peer.close()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
