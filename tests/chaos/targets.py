"""The processes of a cluster, by what they do: whom to kill or stop, and who serves what."""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from ray_stream import Cluster
from ray_stream.actors import spawning
from ray_stream.errors import RayStreamError

POLL_S = 0.02
ANSWER_S = 60.0
PING_S = 2.0


class Target(NamedTuple):
    """One process."""

    kind: str
    """`controller`, `broker` or `host`."""
    pid: int
    partitions: tuple[int, ...]
    """What cannot be written while it is away; of a host, those of one topic."""
    name: str


def targets(
    cluster: Cluster,
    topic: str,
    within_s: float = ANSWER_S,
    *,
    served: Sequence[int] | None = None,
) -> list[Target]:
    """Every process of a cluster on one node, once all of it is up and answers.

    Args:
        cluster: on one node.
        topic: whose hosts are meant.
        within_s: how long it may take.
        served: the partitions that have to be served; None: all.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            found = _targets(cluster, topic, served)
        except (RayError, RayStreamError, AttributeError):
            found = []  # somebody is away just now
        if found:
            return found
        assert time.monotonic() < deadline_s, "the cluster did not come up again"
        time.sleep(POLL_S)


def _targets(cluster: Cluster, topic: str, wanted: Sequence[int] | None) -> list[Target]:
    metadata = cluster.metadata(PING_S)
    served: dict[str, list[int]] = {}
    for partition in next(one for one in metadata.topics if one.name == topic).partitions:
        if partition.host:
            served.setdefault(partition.host, []).append(partition.partition)
        elif wanted is None or partition.partition in wanted:
            return []
    every = tuple(sorted(number for numbers in served.values() for number in numbers))
    name = spawning.controller_name(cluster.name)
    controller: Any = spawning.find(name)
    found = [Target("controller", _answer(controller.ping.remote()), every, name)]
    for broker in metadata.brokers:
        if not broker.alive:
            continue
        actor: Any = spawning.find(broker.actor_name)
        pids: dict[str, int] = _answer(actor.pids.remote())
        for one, pid in pids.items():
            if one == broker.actor_name:
                found.append(Target("broker", pid, every, one))
            elif one in served:
                found.append(Target("host", pid, tuple(served.pop(one)), one))
    return [] if served else found


def _answer(reference: Any) -> Any:  # noqa: ANN401 - whatever the actor says
    return ray.get(reference, timeout=PING_S)


def signal_all(pids: list[int], number: int = signal.SIGKILL) -> float:
    """Send a signal to each; returns when, on the monotonic clock."""
    when = time.monotonic()
    for pid in pids:
        os.kill(pid, number)
    return when
