"""The delays of each carrier, added up by a group of consumer actors that is not left in peace.

Owns: the handler, the kill, growing and shrinking. Refuses: anything but the public API.

A batch that was in hand when its actor was killed is handled again: at least once. What comes twice
is known by its partition and offset.
"""

import json
import os
import signal
import time
from collections.abc import Callable

import pandas as pd

from ray_stream.cluster.consumer_group import ConsumerGroup
from ray_stream.cluster.handle import Cluster
from ray_stream.demo import flights, verdict
from ray_stream.demo.events import Began, Consumed, Event, KilledConsumer, Progressed
from ray_stream.types import ConsumerGroupStatus, TopicPartition

GROUP = "delays"
ACTORS = 3
MORE_ACTORS = 8
BATCH = 5_000
LOOK_S = 0.05
PATIENCE_S = 90.0
PLACE = ["partition", "offset"]

Say = Callable[[Event], None]


class NotConsumedError(Exception):
    """The group did not do what the demo is to show."""


def delays(batch: pd.DataFrame) -> pd.DataFrame:
    """Each flight's carrier and delays, and where it was read: what an actor gives back."""
    rows = [json.loads(value) for value in batch["value"]]
    found = pd.DataFrame(rows, columns=[flights.CARRIER, *flights.DELAYS])
    types = {flights.CARRIER: "string", **dict.fromkeys(flights.DELAYS, "Int64")}
    return found.astype(types).assign(**{name: batch[name].to_numpy() for name in PLACE})


def consume(cluster: Cluster, topic: str, source: pd.DataFrame, say: Say) -> Consumed:
    """Have a group add the delays up while one of it is killed; then let it grow and shrink.

    Args:
        cluster: which has the flights.
        topic: where they are.
        source: the flights themselves.
        say: takes progress.
    """
    begun = time.monotonic()
    with cluster.run_consumers(
        delays,
        topics=topic,
        group=GROUP,
        actors=ACTORS,
        batch_format="pandas",
        max_records=BATCH,
        auto_offset_reset="earliest",
    ) as group:
        say(Began("adding delays up in a group of consumer actors", total=len(source)))
        partitions = [TopicPartition(topic, one) for one in range(_partitions(cluster, topic))]
        watched = Watched(group, partitions, say)
        killed = watched.kill_one(len(source) // 2)
        group.wait(idle=0, timeout=PATIENCE_S)
        consume_s = time.monotonic() - begun
        say(Began(f"growing to {MORE_ACTORS} actors, and back"))
        idle = watched.grow_and_shrink()
    found = pd.concat(list(group.results()), ignore_index=True)
    return Consumed(
        actors=ACTORS,
        records=len(source),
        consume_s=consume_s,
        killed=killed,
        repeated=len(found) - _checked(found, source),
        more_actors=MORE_ACTORS,
        idle=idle,
    )


def _partitions(cluster: Cluster, topic: str) -> int:
    return len(cluster.describe_topic(topic).partitions)


def _checked(found: pd.DataFrame, source: pd.DataFrame) -> int:
    """How many flights were handled, if those are all, and their delays add up."""
    once = found.drop_duplicates(PLACE)
    problem = verdict.sums(once, source)
    if len(once) != len(source) or problem:
        raise NotConsumedError(
            f"a group handled {len(once):,} of {len(source):,} flights: {problem or 'some lost'}"
        )
    return len(once)


class Watched:
    """A group under the eyes of whoever made it."""

    def __init__(self, group: ConsumerGroup, partitions: list[TopicPartition], say: Say) -> None:
        self._group = group
        self._partitions = partitions
        self._say = say

    def kill_one(self, after: int) -> KilledConsumer:
        """Kill an actor once so many records were handled; returns when others have its part."""
        before = self._until(lambda one: one.records >= after and self._are_owned(one))
        victim = max(before.members, key=lambda one: (one.busy_s > 0, len(one.partitions)))
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        self._until(lambda one: one.restarts > 0 and self._are_owned(one))
        moved_s = time.monotonic() - killed
        return KilledConsumer(victim.name.rpartition("/")[2], victim.pid, before.records, moved_s)

    def grow_and_shrink(self) -> int:
        """More actors than partitions, then as many as before; how many of them were idle."""
        self._group.scale(MORE_ACTORS)
        ready = ("waiting", "idle")
        grown = self._until(
            lambda one: (
                self._are_owned(one)
                and sum(each.state in ready for each in one.members) == MORE_ACTORS
            )
        )
        self._group.scale(ACTORS)
        self._until(lambda one: len(one.members) == ACTORS and self._are_owned(one))
        return sum(not one.partitions for one in grown.members)

    def _are_owned(self, status: ConsumerGroupStatus) -> bool:
        """Whether each partition has one owner that lives."""
        return sorted(name for one in status.members for name in one.partitions) == self._partitions

    def _until(self, is_so: Callable[[ConsumerGroupStatus], bool]) -> ConsumerGroupStatus:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so(status := self._group.status(timeout=0)):
            if status.state == "failed" or time.monotonic() > deadline:
                raise NotConsumedError(f"a group of consumer actors came to this: {status}")
            self._say(Progressed(status.records))
            time.sleep(LOOK_S)
        return status
