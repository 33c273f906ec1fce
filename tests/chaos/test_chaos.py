"""`make chaos`: many rounds of what `tests/ray/test_faults_*.py` does a few times."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_stream import Cluster
from tests.chaos.killing import kill_under_load
from tests.history.checker import describe

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ROUNDS = int(os.environ.get("RAY_STREAM_CHAOS_ROUNDS", "20"))
SEED = int(os.environ.get("RAY_STREAM_CHAOS_SEED", "0"))
AGAIN_S = float(os.environ.get("RAY_STREAM_CHAOS_AGAIN_S", "10"))
"""What is promised on a machine that has nothing else to do."""
KINDS = ["host", "controller", "host", "broker", "host", "control", "all"]
IN_FLIGHT_MIN = 20


def test_no_kill_loses_repeats_or_reorders_a_record(
    starting: Callable[..., Cluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    kinds = KINDS[:ROUNDS] + rng.choices(KINDS, k=max(0, ROUNDS - len(KINDS)))
    with starting("chaos", config={"partition_actors_max": 2}) as cluster:
        cluster.create_topic("written", partitions=4, segment_bytes=1024 * 1024)
        figures, report = kill_under_load(
            cluster, "written", tmp_path, kinds=kinds, seed=SEED, again_s=AGAIN_S, pause=time.sleep
        )
    with capsys.disabled():
        print(f"\nseed {SEED}: {figures}\n{describe(report)}")
    assert report.valid, describe(report)
    assert figures.in_flight >= min(IN_FLIGHT_MIN, ROUNDS * 3 // 4)
