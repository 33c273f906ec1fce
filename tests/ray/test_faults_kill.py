"""Killed and stopped actors under load: what was acknowledged stays, once, in order."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_stream import Cluster
from tests.chaos.killing import kill_under_load
from tests.chaos.load import Load, judge
from tests.chaos.targets import Target, targets
from tests.history.checker import describe
from tests.ray.drivers import is_running, wait_until_ended

pytestmark = pytest.mark.ray
PATIENCE_S = 90.0
"""For a machine that others use, too; `make chaos` holds the promised seconds."""
SEGMENT_BYTES = 64 * 1024


@pytest.fixture
def cluster(starting: Callable[..., Cluster]) -> Cluster:
    """One with two partition actors, and a topic of four partitions with small segments."""
    cluster = starting("faults", config={"partition_actors_max": 2})
    cluster.create_topic("written", partitions=4, segment_bytes=SEGMENT_BYTES)
    return cluster


def test_killed_actors_come_back_and_nothing_is_lost_repeated_or_reordered(
    cluster: Cluster, tmp_path: Path
) -> None:
    figures, report = kill_under_load(
        cluster,
        "written",
        tmp_path,
        kinds=["host", "controller", "broker", "all", "host"],
        seed=1,
        again_s=PATIENCE_S,
        pause=time.sleep,
    )
    assert report.valid, describe(report)
    assert report.acknowledged
    assert figures.in_flight >= figures.kills - 2, "kills hit nothing that was under way"
    assert figures.producers_killed


@pytest.mark.slow
def test_a_stopped_actor_is_replaced_and_changes_nothing_when_it_is_continued(
    cluster: Cluster, tmp_path: Path
) -> None:
    with Load(cluster, "written", tmp_path, producers=2, consumers=1) as load:
        for kind in ("host", "controller", "broker"):
            hit = next(one for one in targets(cluster, "written") if one.kind == kind)
            os.kill(hit.pid, signal.SIGSTOP)
            try:
                successor = _replaced(cluster, hit)
            finally:
                _continue(hit)
            # A broker's successor has its name at once, and ends it when it wants its locks.
            wait_until_ended([hit.pid], PATIENCE_S)
            every = targets(cluster, "written")
            assert successor.pid in [one.pid for one in every], "the old one came between"
            partitions = every[0].partitions
            load.wait_for_acknowledgements(time.monotonic(), partitions, PATIENCE_S)
        load.finish()
    report = judge(cluster, "written", tmp_path)
    assert report.valid, describe(report)
    assert report.acknowledged


def _replaced(cluster: Cluster, hit: Target) -> Target:
    """Whoever does now what a stopped one did; by then that has an answer of its own."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for one in targets(cluster, "written", PATIENCE_S):
            same = one.name == hit.name if hit.kind != "host" else one.partitions == hit.partitions
            if one.kind == hit.kind and same and one.pid != hit.pid:
                return one
        assert time.monotonic() < deadline, f"{hit} was not replaced"


def _continue(hit: Target) -> None:
    if is_running(hit.pid):
        os.kill(hit.pid, signal.SIGCONT)
