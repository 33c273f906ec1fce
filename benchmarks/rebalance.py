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
from ray_stream.testing.handled import Handled

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chaos.handlers import noting

RESULTS = Path(__file__).parent / "results"
PARTITIONS = 6
EVERY_S = 0.025
"""A record for each partition."""
WATCHED_S = 6.0
PATIENCE_S = 60.0


def produce(cluster: ray_stream.Cluster, stop: threading.Event) -> None:
    """Records for every partition, all the time."""
    with cluster.producer(linger_ms=0) as producer:
        while not stop.wait(EVERY_S):
            for partition in range(PARTITIONS):
                producer.send("flights", b"x", partition=partition)


class Notes:
    """What handlers have written down; each line is read once, or reading would slow them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.runs: dict[int, list[Handled]] = {number: [] for number in range(PARTITIONS)}
        """By partition, and by time."""

    def look(self) -> None:
        """Read what is new."""
        new: list[Handled] = []
        for path in self._directory.glob("*.handled"):
            begin = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begin)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] = begin + len(whole) + len(end)
            new += [Handled(*json.loads(line)) for line in whole.splitlines()]
        for run in sorted(new, key=lambda one: one.at_s):
            self.runs[run.partition].append(run)

    def until_all_flow(self, members: int = PARTITIONS) -> dict[int, Handled]:
        """Wait until every partition was handled just now, by so many members; who did it last."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.look()
            found = {number: runs[-1] for number, runs in self.runs.items() if runs}
            since = time.monotonic() - 0.5
            flows = len(found) == PARTITIONS and all(run.at_s > since for run in found.values())
            if flows and len({run.member for run in found.values()}) == members:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def until_moved(self, lost: dict[int, Handled], begun: float) -> float:
        """Seconds until others have handled every lost partition."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.look()
            first = {}
            for number, before in lost.items():
                for run in reversed(self.runs[number]):
                    if run.at_s <= begun:
                        break
                    if run.member != before.member:
                        first[number] = run.at_s
            if len(first) == len(lost):
                return max(first.values()) - begun
            assert time.monotonic() < deadline, (lost, first)
            time.sleep(0.05)

    def handed_over(self, before: dict[int, Handled], now: dict[int, Handled]) -> float:
        """The longest time between the last run of an old owner and the first of the new one."""
        times = []
        for number in (one for one in now if now[one].member != before[one].member):
            runs = self.runs[number][-2_000:]
            old = max(run.at_s for run in runs if run.member == before[number].member)
            times.append(min(run.at_s for run in runs if run.at_s > old) - old)
        return max(times)

    def longest_gap(self, partitions: set[int], begun: float, until: float) -> float:
        """The longest time that one of these partitions was not handled."""
        self.look()
        worst = 0.0
        for number in partitions:
            recent = self.runs[number][-2_000:]
            times = [run.at_s for run in recent if begun - 1 < run.at_s < until]
            worst = max([worst, *(b - a for a, b in pairwise(times) if b > begun)])
        return worst


def told(figures: list[float]) -> dict[str, float]:
    """Median and maximum."""
    return {"median_s": round(statistics.median(figures), 3), "max_s": round(max(figures), 3)}


def main(rounds: int) -> dict[str, object]:
    """Run it."""
    killed, withheld, usual, left = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="rs-") as directory:
        noted = Path(directory) / "notes"
        noted.mkdir()
        notes = Notes(noted)
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
                constructor_args=(str(noted),),
            )
            for number in range(rounds):
                before = notes.until_all_flow()
                quiet = time.monotonic()
                time.sleep(WATCHED_S)
                usual.append(notes.longest_gap(set(before), quiet, time.monotonic()))
                victim = before[number % PARTITIONS].member
                lost = {p: run for p, run in before.items() if run.member == victim}
                begun = time.monotonic()
                os.kill(int(victim.partition("-")[0]), signal.SIGKILL)
                killed.append(notes.until_moved(lost, begun))
                time.sleep(max(0.0, begun + WATCHED_S - time.monotonic()))
                others = set(before) - set(lost)
                withheld.append(notes.longest_gap(others, begun, time.monotonic()))
                print(
                    f"kill {number}: moved {killed[-1]:.3f} s, others waited {withheld[-1]:.3f} s"
                    f" (usually {usual[-1]:.3f} s)",
                    flush=True,
                )
            for number in range(rounds):
                group.scale(6)
                before = notes.until_all_flow(6)
                group.scale(5)
                now = notes.until_all_flow(5)
                left.append(notes.handed_over(before, now))
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
