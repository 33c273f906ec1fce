"""How long partitions wait when a group changes: members killed, members that leave.

Run: `python benchmarks/rebalance.py [ROUNDS]`. Eight consumer actors on six partitions, then six;
records come all the time. Writes `benchmarks/results/rebalance.json`.
"""

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import ray

import ray_stream
from ray_stream.testing.handled import Handled, read_notes

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chaos.handlers import noting

RESULTS = Path(__file__).parent / "results"
PARTITIONS = 6
EVERY_S = 0.01
"""A record for each partition."""
WATCHED_S = 6.0
PATIENCE_S = 60.0


def produce(cluster: ray_stream.Cluster, stop: threading.Event) -> None:
    """Records for every partition, all the time."""
    with cluster.producer(linger_ms=0) as producer:
        while not stop.wait(EVERY_S):
            for partition in range(PARTITIONS):
                producer.send("flights", b"x", partition=partition)


def owners(notes: Path) -> dict[int, Handled]:
    """Who handled each partition last."""
    return {run.partition: run for run in read_notes(notes)}


def until_all_flow(notes: Path, members: int = PARTITIONS) -> dict[int, Handled]:
    """Wait until every partition was handled just now, by so many members."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = owners(notes)
        since = time.monotonic() - 0.5
        flows = len(found) == PARTITIONS and all(run.at_s > since for run in found.values())
        if flows and len({run.member for run in found.values()}) == members:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def until_moved(notes: Path, lost: dict[int, Handled], begun: float) -> float:
    """Seconds until others have handled every lost partition."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        first: dict[int, float] = {}
        for run in read_notes(notes):
            before = lost.get(run.partition)
            if before is not None and run.at_s > begun and run.member != before.member:
                first.setdefault(run.partition, run.at_s)
        if len(first) == len(lost):
            return max(first.values()) - begun
        assert time.monotonic() < deadline, (lost, first)
        time.sleep(0.05)


def handed_over(notes: Path, before: dict[int, Handled], now: dict[int, Handled]) -> float:
    """The longest time between the last run of an old owner and the first of the new one."""
    runs = [run for run in read_notes(notes) if run.at_s > min(r.at_s for r in before.values())]
    times = []
    for partition in (p for p in now if now[p].member != before[p].member):
        mine = [run for run in runs if run.partition == partition]
        old = max(
            run.at_s for run in [before[partition], *mine] if run.member == before[partition].member
        )
        times.append(min(run.at_s for run in mine if run.at_s > old) - old)
    return max(times)


def longest_gap(notes: Path, partitions: set[int], begun: float, until: float) -> float:
    """The longest time that one of these partitions was not handled."""
    worst = 0.0
    runs = [run for run in read_notes(notes) if begun - 1 < run.at_s < until]
    for partition in partitions:
        times = [run.at_s for run in runs if run.partition == partition]
        gaps = [b - a for a, b in pairwise(times) if b > begun]
        worst = max([worst, *gaps])
    return worst


def told(figures: list[float]) -> dict[str, float]:
    """Median and maximum."""
    return {"median_s": round(statistics.median(figures), 3), "max_s": round(max(figures), 3)}


def main(rounds: int) -> dict[str, object]:
    """Run it."""
    killed, withheld, usual, left = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="rs-") as directory:
        notes = Path(directory) / "notes"
        notes.mkdir()
        stop = threading.Event()
        with ray_stream.start(data_dir=Path(directory) / "data") as cluster:
            cluster.create_topic("flights", partitions=PARTITIONS, durability="replicated")
            producing = threading.Thread(target=produce, args=(cluster, stop), daemon=True)
            producing.start()
            group = cluster.run_consumers(
                noting(),
                topics=["flights"],
                group="measured",
                actors=8,
                batch_format="arrow",
                constructor_args=(str(notes),),
            )
            for number in range(rounds):
                before = until_all_flow(notes)
                quiet = time.monotonic()
                time.sleep(WATCHED_S / 2)
                usual.append(longest_gap(notes, set(before), quiet, time.monotonic()))
                victim = before[number % PARTITIONS].member
                lost = {p: run for p, run in before.items() if run.member == victim}
                begun = time.monotonic()
                os.kill(int(victim.partition("-")[0]), signal.SIGKILL)
                killed.append(until_moved(notes, lost, begun))
                time.sleep(max(0.0, begun + WATCHED_S - time.monotonic()))
                others = set(before) - set(lost)
                withheld.append(longest_gap(notes, others, begun, time.monotonic()))
                print(
                    f"kill {number}: moved {killed[-1]:.3f} s, others waited {withheld[-1]:.3f} s"
                    f" (usually {usual[-1]:.3f} s)",
                    flush=True,
                )
            for number in range(rounds):
                group.scale(6)
                before = until_all_flow(notes, 6)
                group.scale(5)
                now = until_all_flow(notes, 5)
                left.append(handed_over(notes, before, now))
                print(f"leave {number}: {left[-1]:.3f} s", flush=True)
            stop.set()
            producing.join(PATIENCE_S)
            group.stop()
    return {
        "rounds": rounds,
        "killed_until_read_again": told(killed),
        "left_until_read_again": told(left),
        "longest_gap_of_partitions_that_did_not_move": told(withheld),
        "longest_gap_without_any_change": told(usual),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load_at_the_end": os.getloadavg(),
        },
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }


if __name__ == "__main__":
    figures = main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rebalance.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
