"""The group coordinator's machine alone: how long decisions take as groups grow.

Run: `python benchmarks/groups.py [quick]`. Writes `benchmarks/results/groups.json`
with the machine and versions.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    MetadataSeen,
    SeenTopic,
    Subscription,
    Tick,
)
from ray_stream.groups.coordinator import GroupCoordinator
from ray_stream.groups.records import encode_record

RESULTS = Path(__file__).parent / "results"
SIZES = [(10, 100), (30, 300), (100, 1_000), (300, 3_000), (1_000, 10_000)]
"""Members and partitions of one group."""
GROUPS = [10, 100, 1_000]
"""Groups of three members."""
BEATS = 30_000


def timed(action: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1_000


def coordinator(partitions: int) -> GroupCoordinator:
    machine = GroupCoordinator()
    machine.begin(0)
    nodes = [f"n{number % 8}" for number in range(partitions)]
    machine.accept(machine.decide(MetadataSeen(1, [SeenTopic("t", "flights", nodes)]), 0))
    return machine


class Members:
    """Members that apply and release at once."""

    def __init__(self, machine: GroupCoordinator) -> None:
        self.machine = machine
        self.told: dict[tuple[str, str], HeartbeatAnswer] = {}
        self.bytes = 0

    def beat(self, group: str, member: str) -> HeartbeatAnswer:
        key = (group, member)
        told = self.told.get(key)
        if told is None:
            wants = Subscription(["flights"], node_id=f"n{len(self.told) % 8}")
            beat = ConsumerGroupHeartbeat(group, member, 0, 1, subscription=wants)
        else:
            # It owns at most what it was told, so it has released the rest.
            beat = ConsumerGroupHeartbeat(
                group, member, told.member_epoch, 2, told.revision, owned=[]
            )
        resolution = self.machine.decide(beat, 0)
        self.machine.accept(resolution)
        self.bytes += sum(len(encode_record(record)) for record in resolution.records)
        assert isinstance(resolution.response, HeartbeatAnswer)
        self.told[key] = resolution.response
        return resolution.response

    def settle(self) -> int:
        """Heartbeats until nobody learns anything; returns how many."""
        beats = 0
        while True:
            news = [self.beat(*key).assignment is not None for key in list(self.told)]
            beats += len(news)
            if not any(news):
                return beats


def one_group(size: int, partitions: int) -> dict[str, object]:
    """Members join one after the other; the last one's join is what is looked at."""
    machine = coordinator(partitions)
    members = Members(machine)
    joins = [timed(lambda n=n: members.beat("g", f"m{n:05}")) for n in range(size - 1)]
    members.settle()
    before = dict(machine.image.groups["g"].owners)
    members.bytes = 0
    last = timed(lambda: members.beat("g", "last"))
    join_bytes = members.bytes
    settled = timed(members.settle)
    moved = sum(machine.image.groups["g"].owners[key] != m for key, m in before.items())
    snapshot = b"".join(encode_record(record) for record in machine.snapshot())
    grow = MetadataSeen(2, [SeenTopic("t", "flights", ["n0"] * (partitions + 1))])
    return {
        "members": size,
        "partitions": partitions,
        "join_ms": round(last, 2),
        "joins_median_ms": round(statistics.median(joins), 2),
        "joins_max_ms": round(max(joins), 2),
        "all_joins_s": round(sum(joins) / 1_000, 2),
        "join_log_bytes": join_bytes,
        "rebalance_all_heartbeats_ms": round(settled, 1),
        "partitions_moved": moved,
        "partitions_moved_minimum": partitions // size,
        "snapshot_bytes": len(snapshot),
        "new_partition_ms": round(timed(lambda: machine.accept(machine.decide(grow, 0))), 2),
    }


def many_groups(groups: int) -> dict[str, object]:
    """Heartbeats of settled groups, and of groups that come up."""
    machine = coordinator(12)
    members = Members(machine)
    keys = [(f"g{number}", f"m{member}") for number in range(groups) for member in range(3)]
    up = timed(lambda: ([members.beat(*key) for key in keys], members.settle()))
    rounds = max(1, BEATS // len(keys))
    beats = timed(lambda: [members.beat(*key) for _ in range(rounds) for key in keys])
    machine.tell_time(1_000)
    return {
        "groups": groups,
        "members": len(keys),
        "come_up_ms": round(up, 1),
        "heartbeats_per_s": round(rounds * len(keys) / beats * 1_000),
        "tick_ms": round(timed(lambda: machine.accept(machine.decide(Tick(), 0))), 3),
    }


def main(*, quick: bool) -> dict[str, object]:
    """Run it; returns the figures."""
    sizes, groups = (SIZES[:3], GROUPS[:2]) if quick else (SIZES, GROUPS)
    figures: dict[str, object] = {}
    for name, runs in (
        ("one_group", [lambda s=s: one_group(*s) for s in sizes]),
        ("many_groups", [lambda g=g: many_groups(g) for g in groups]),
    ):
        found = []
        for run in runs:
            found.append(run())
            print(found[-1], flush=True)
        figures[name] = found
    return figures


if __name__ == "__main__":
    figures = main(quick="quick" in sys.argv[1:])
    figures |= {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "versions": {"python": platform.python_version(), "msgspec": msgspec.__version__},
    }
    if "quick" not in sys.argv[1:]:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "groups.json").write_text(json.dumps(figures, indent=2) + "\n")
