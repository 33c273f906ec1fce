"""What runs in a cluster: its partition actors, and the processes behind them.

Owns: asking every actor at once, with one deadline, and leaving out those that do not answer.
Refuses: what the controller knows (`Cluster.metadata`), and changing anything.
"""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from ray_stream.actors import registry, spawning
from ray_stream.actors.calls import incoming, outgoing
from ray_stream.cluster.handle import Cluster
from ray_stream.errors import RayStreamError
from ray_stream.rpc.hosting import DescribeHost, HostDescribed

TIMEOUT_S = 5.0


def is_stopped(name: str) -> bool:
    """Whether somebody stopped the cluster of that name in this process's Ray."""
    return registry.read_spec(name) is None


def partition_actors(cluster: Cluster, timeout: float = TIMEOUT_S) -> list[HostDescribed]:
    """What each partition actor says about itself, by name: process id, niceness, what it serves.

    Args:
        cluster: an open handle.
        timeout: seconds for all of them together; who is silent is left out.
    """
    asked: list[Any] = []
    for broker in cluster.metadata(timeout).brokers:
        for name in spawning.living_hosts(cluster.name, broker.node_id):
            actor: Any = spawning.find(name)
            if actor is not None:
                asked.append(actor.call.remote(*outgoing(DescribeHost())))
    answers = (incoming(frames) for frames in _answered(asked, timeout))
    found = [answer for answer in answers if isinstance(answer, HostDescribed)]
    return sorted(found, key=lambda one: one.host)


def process_ids(cluster: Cluster, timeout: float = TIMEOUT_S) -> dict[str, int]:
    """Process ids of the brokers and their partition actors, by actor name."""
    asked = [
        actor.pids.remote()
        for broker in cluster.metadata(timeout).brokers
        if broker.alive and (actor := _actor(broker.actor_name)) is not None
    ]
    found: dict[str, int] = {}
    for pids in _answered(asked, timeout):
        found |= pids
    return found


def _actor(name: str) -> Any:
    return spawning.find(name)


def _answered(references: list[Any], timeout: float) -> list[Any]:
    """The answers that came in time; an actor that died meanwhile has none."""
    deadline = time.monotonic() + timeout
    answers = []
    for reference in references:
        try:
            answers.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
        except (RayError, RayStreamError):
            continue
    return answers
