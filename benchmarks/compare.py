"""ray_stream beside Apache Kafka and its C client, case by case, interleaved in one run.

Run: `make bench` or `python benchmarks/compare.py [--repetitions 5] [--cases send,read]`. Writes
`benchmarks/results/compare.json`: every figure, medians and ranges, ratios with their spread, the
machine and the versions. A peer that is missing is reported as not measured.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kafka_peer
from peers import PARTITIONS, Peer, RayStream

RESULTS = Path(__file__).parent / "results"
RECORD = 100
KEYS = 100_000


@dataclass
class Case:
    """One row."""

    name: str
    target: float
    """What the ratio is to be at least; for latencies at most."""
    unit: str
    run: Callable[[Peer, str], float | list[float]]
    """Gets a peer and a fresh topic's name."""
    fsync: bool = False
    lower_is_better: bool = False
    partitions: int = PARTITIONS
    figures: dict[str, list[float]] = field(default_factory=dict)


def rate(seconds: float, count: int) -> float:
    """Per second."""
    return count / seconds


def send(count: int, *, keyed: bool = False, size: int = RECORD) -> Callable[[Peer, str], float]:
    """Records a second, one call each."""
    keys = [b"key-%d" % (number % KEYS) for number in range(count)] if keyed else None

    def run(peer: Peer, topic: str) -> float:
        return rate(peer.send_each(topic, b"x" * size, count, keys), count)

    return run


def send_all(
    count: int, size: int = RECORD, *, in_bytes: bool = False
) -> Callable[[Peer, str], float]:
    """Records or megabytes a second, many a call."""

    def run(peer: Peer, topic: str) -> float:
        return rate(
            peer.send_all(topic, b"x" * size, count), count * size / 1e6 if in_bytes else count
        )

    return run


def read(method: str, count: int) -> Callable[[Peer, str], float]:
    """Records a second, of a topic that is written first."""

    def run(peer: Peer, topic: str) -> float:
        peer.send_all(topic, b"x" * RECORD, count)
        return rate(getattr(peer, method)(topic, count), count)

    return run


def latency(quantile: float, count: int = 500) -> Callable[[Peer, str], float]:
    """Microseconds from send to poll."""

    def run(peer: Peer, topic: str) -> float:
        times = sorted(peer.round_trips(topic, count)[count // 10 :])
        return times[int(len(times) * quantile)] * 1e6

    return run


def cases() -> list[Case]:
    """The table."""
    return [
        Case("send, unkeyed, replicated", 2.5, "rec/s", send(1_000_000)),
        Case("send, keyed, replicated", 2.5, "rec/s", send(1_000_000, keyed=True)),
        Case("send, unkeyed, fsync", 2.5, "rec/s", send(1_000_000), fsync=True),
        Case("send, keyed, fsync", 2.5, "rec/s", send(1_000_000, keyed=True), fsync=True),
        Case("send_batch, replicated", 10, "rec/s", send_all(2_000_000)),
        Case("send_batch, fsync", 10, "rec/s", send_all(2_000_000), fsync=True),
        Case("send_batch of 1 KB, MB/s", 4, "MB/s", send_all(400_000, 1_000, in_bytes=True)),
        Case("read, one object a record", 2, "rec/s", read("read_each", 1_000_000)),
        Case("fetch to Arrow, catching up", 40, "rec/s", read("read_all", 2_000_000)),
        Case("latency p50", 0.4, "us", latency(0.5), lower_is_better=True, partitions=1),
        Case("latency p99", 0.2, "us", latency(0.99), lower_is_better=True, partitions=1),
        Case(
            "latency p50, fsync",
            0.5,
            "us",
            latency(0.5),
            fsync=True,
            lower_is_better=True,
            partitions=1,
        ),
    ]


def measure(peers: list[Peer], wanted: list[Case], repetitions: int) -> None:
    """Every case on every peer, in turns, so that a drift of the machine meets all of them."""
    for repetition in range(repetitions):
        for number, case in enumerate(wanted):
            turn = peers if repetition % 2 == 0 else peers[::-1]
            for peer in turn:
                topic = f"bench-{number}-{repetition}"
                peer.make_topic(topic, partitions=case.partitions, fsync=case.fsync)
                figure = case.run(peer, topic)
                case.figures.setdefault(peer.name, []).append(figure)
                print(f"{case.name:32} {peer.name:12} {figure:14,.0f} {case.unit}", flush=True)


def summary(case: Case) -> dict[str, object]:
    """Medians, ranges, and the ratio of each repetition."""
    told: dict[str, object] = {"case": case.name, "unit": case.unit, "target": case.target}
    for name, figures in case.figures.items():
        told[name] = {"median": statistics.median(figures), "range": [min(figures), max(figures)]}
    if len(case.figures) == 2:
        ours, theirs = case.figures[RayStream.name], case.figures[kafka_peer.Kafka.name]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        told["ratio"] = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        worst = max(ratios) if case.lower_is_better else min(ratios)
        told["reached"] = worst <= case.target if case.lower_is_better else worst >= case.target
    return told


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--cases", default="", help="only those whose names begin with one of these"
    )
    arguments = parser.parse_args()
    names = tuple(arguments.cases.split(","))
    wanted = [case for case in cases() if case.name.startswith(names)]
    peers: list[Peer] = [RayStream()]
    missing = kafka_peer.why_not()
    if missing:
        print(f"kafka: not measured: {missing}")
    else:
        peers.append(kafka_peer.Kafka())
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as directory:
        starts = {}
        try:
            for peer in peers:
                starts[peer.name] = peer.start(Path(directory) / peer.name)
            measure(peers, wanted, arguments.repetitions)
        finally:
            for peer in peers:
                if peer.name in starts:
                    peer.stop()
    told = {
        "cold_start_s": starts,
        "not_measured": {"kafka": missing} if missing else {},
        "cases": [summary(case) for case in wanted],
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load_at_the_end": os.getloadavg(),
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("ray", "pyarrow", "numpy", *(() if missing else ("confluent-kafka",)))
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compare.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    for row in told["cases"]:
        print(row)


if __name__ == "__main__":
    main()
