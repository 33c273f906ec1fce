"""Rounds of killing under load, and the figures that come of them."""

import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray_stream import Cluster
from ray_stream.testing.checker import Report
from tests.chaos.load import Load, judge
from tests.chaos.targets import Target, signal_all, targets

FIRST_S = 60.0
KINDS = ("host", "controller", "broker", "host", "all")
PAUSE_MAX_S = 0.7


@dataclass
class Figures:
    """What some rounds of kills cost."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By kind of kill: until every writer was acknowledged again."""
    in_flight: int = 0
    """Kills that hit with batches in flight."""
    kills: int = 0
    producers_killed: int = 0

    def __str__(self) -> str:
        parts = [
            f"{kind}: {len(times)} kills, median {statistics.median(times):.2f} s, "
            f"max {max(times):.2f} s"
            for kind, times in sorted(self.seconds.items())
        ]
        return (
            f"{self.kills} kills, {self.in_flight} with batches in flight, "
            f"{self.producers_killed} producers killed; " + "; ".join(parts)
        )


def chosen(kind: str, found: list[Target], rng: random.Random) -> list[Target]:
    """Whom a kill of that kind hits."""
    if kind == "all":
        return found
    if kind == "control":
        return [one for one in found if one.kind != "host"]
    return [rng.choice([one for one in found if one.kind == kind])]


def kill_under_load(
    cluster: Cluster,
    topic: str,
    directory: Path,
    *,
    kinds: list[str],
    seed: int,
    producers: int = 4,
    again_s: float,
    pause: Callable[[float], None],
    kill_producers_every: int = 5,
) -> tuple[Figures, Report]:
    """Kill one after the other under load, each time until everybody writes again.

    Args:
        cluster: on one node.
        topic: of it; all its partitions are written and read.
        directory: gets the histories.
        kinds: of kills, in order: `host`, `controller`, `broker`, `control` (both), `all`.
        seed: of every choice.
        producers: how many at once.
        again_s: how long after a kill somebody may have to wait for an acknowledgement.
        pause: lets the load run on for so many seconds.
        kill_producers_every: so many rounds, a producer is killed, too.
    """
    rng = random.Random(seed)
    figures = Figures()
    with Load(cluster, topic, directory, producers=producers, consumers=1) as load:
        every = list(targets(cluster, topic)[0].partitions)
        load.wait_for_acknowledgements(time.monotonic(), every, FIRST_S)
        for number, kind in enumerate(kinds, 1):
            hit = chosen(kind, targets(cluster, topic), rng)
            partitions = sorted({one for target in hit for one in target.partitions})
            when = signal_all([target.pid for target in hit], signal.SIGKILL)
            took = load.wait_for_acknowledgements(when, partitions, again_s)
            figures.kills += 1
            figures.seconds.setdefault(kind, []).append(took)
            figures.in_flight += load.in_flight(when, partitions) > 0
            if number % kill_producers_every == 0:
                load.replace(rng.choice(load.producers))
                figures.producers_killed += 1
                load.wait_for_acknowledgements(when, every, FIRST_S)
            load.forget_before(when)
            pause(rng.uniform(0, PAUSE_MAX_S))
        load.finish()
    return figures, judge(cluster, topic, directory)
