"""Handlers of consumer groups that write down what they saw, and whom to kill of a group."""

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from ray_stream import Cluster
from ray_stream.actors import spawning
from ray_stream.testing.handled import BEGUN, HANDLED, note, runs_of

ANSWER_S = 5.0


def noting() -> type:
    """A handler class of Arrow batches; made here, so that it is pickled by value."""

    class Noting:
        def __init__(self, directory: str, takes_s: float = 0.0) -> None:
            """Args: takes_s: for each batch; half before it is noted, half before returning."""
            self.member = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self.path = Path(directory) / self.member
            self.takes_s = takes_s
            self.calls = 0

        def __call__(self, batch: pa.Table) -> None:
            columns = batch["partition"].to_numpy(), batch["offset"].to_numpy()
            if self.takes_s:
                self.note(BEGUN, columns)
                time.sleep(self.takes_s / 2)
            self.note(HANDLED, columns)
            time.sleep(self.takes_s / 2)
            self.calls += 1

        def note(self, kind: str, columns: tuple[Any, Any]) -> None:
            runs = runs_of(self.member, self.calls, *columns, time.monotonic())
            note(self.path.with_suffix(f".{kind}"), runs)

    return Noting


def members(cluster: Cluster) -> dict[str, int]:
    """Process ids of the consumer actors that answer, by name."""
    names = [name for name in spawning.living_actors(cluster.name) if "/consumer/" in name]
    return _answering({name: spawning.find(name) for name in names})


def _answering(actors: dict[str, Any]) -> dict[str, int]:
    asked = {name: actor.ping.remote() for name, actor in actors.items() if actor is not None}
    found = {}
    for name, reference in asked.items():
        try:
            found[name] = ray.get(reference, timeout=ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError):
            continue  # it is on its way out, or in
    return found


def hosts(cluster: Cluster) -> dict[str, int]:
    """Process ids of coordinator and partition actors, by name."""
    found: dict[str, int] = {}
    for broker in cluster.metadata(ANSWER_S).brokers:
        actor: Any = spawning.find(broker.actor_name) if broker.alive else None
        if actor is not None:
            pids: dict[str, int] = ray.get(actor.pids.remote(), timeout=ANSWER_S)
            found |= {name: pid for name, pid in pids.items() if "/host/" in name}
    return found


def is_coordinator(name: str) -> bool:
    """Whether a host's name is a coordinator's."""
    return name.rsplit("/", 1)[1].startswith("groups.")
