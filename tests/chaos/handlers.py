"""Handlers of consumer groups that write down what they saw, and whom to kill of a group."""

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ray_stream import Cluster
from ray_stream.actors import spawning
from ray_stream.testing.handled import Handled, note

ANSWER_S = 5.0


def noting() -> type:
    """A handler class of Arrow batches; made here, so that it is pickled by value."""

    class Noting:
        def __init__(self, directory: str) -> None:
            self.member = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self.path = Path(directory) / f"{self.member}.handled"
            self.calls = 0

        def __call__(self, batch: pa.Table) -> None:
            import time

            offsets = batch["offset"].to_numpy()
            numbers = batch["partition"].to_numpy()
            edges = np.flatnonzero((np.diff(offsets) != 1) | (np.diff(numbers) != 0)) + 1
            starts = [0, *edges.tolist()]
            stops = [*edges.tolist(), len(offsets)]
            now_s = time.monotonic()
            note(
                self.path,
                [
                    Handled(
                        self.member,
                        self.calls,
                        int(numbers[start]),
                        int(offsets[start]),
                        int(offsets[stop - 1]) + 1,
                        stop - start,
                        now_s,
                    )
                    for start, stop in zip(starts, stops, strict=True)
                    if stop > start
                ],
            )
            self.calls += 1

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
