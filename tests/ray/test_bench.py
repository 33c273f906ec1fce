"""`ray-stream bench` as a person uses it: figures for every case, and nothing left behind."""

import json
import multiprocessing
import os
import signal
import subprocess

import pytest

from ray_stream import Cluster
from ray_stream.cli.benchmark_clients import Clients, Job
from ray_stream.errors import ClusterNotFoundError, RayStreamError
from tests.ray.drivers import family, kill, wait_until_ended
from tests.ray.test_cli import PATIENCE_S, SCRIPT, environment, succeeded

pytestmark = pytest.mark.ray
RECORDS = 3_000


@pytest.mark.slow
def test_every_case_has_a_rate_and_the_topic_is_gone(shared: Cluster, local_ray: str) -> None:
    before = shared.topics()
    where = ("--name", shared.name, "--address", local_ray)
    told = json.loads(succeeded("bench", "--records", str(RECORDS), "--json", *where))
    assert {one["case"]: one["records"] for one in told["cases"]} == {
        "one producer, send()": RECORDS,
        "one consumer, record by record": RECORDS,
        "one consumer, fetch() to Arrow": RECORDS,
        "three consumers, record by record": RECORDS,
        "one producer, send_batch()": RECORDS,
        "three producers, send()": RECORDS,
        "a producer and a consumer at once": RECORDS,
    }
    assert all(one["records_per_s"] > 0 for one in told["cases"])
    latency = told["latency_us"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"]
    assert shared.topics() == before


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_clients_and_deletes_its_topic(
    shared: Cluster, local_ray: str
) -> None:
    """A terminal interrupts the whole process group; whoever interrupts the parent alone, too."""
    before = shared.topics()
    where = ("--name", shared.name, "--address", local_ray)
    with subprocess.Popen(
        [SCRIPT, "bench", "--records", "100000000", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stderr is not None
            assert "is deleted at the end" in process.stderr.readline()
            (topic,) = set(shared.topics()) - set(before)
            with shared.consumer(topic, auto_offset_reset="earliest") as consumer:
                assert consumer.poll(timeout=PATIENCE_S)
            started = family(process.pid)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:
                kill(family(process.pid))
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in said
    wait_until_ended(started)
    assert shared.topics() == before


def test_what_a_client_process_meets_is_raised_to_who_waits_for_it(local_ray: str) -> None:
    with pytest.raises(ClusterNotFoundError, match="nobody"), Clients("nobody", local_ray, 1):
        pass


def test_a_client_process_that_is_killed_is_told_not_waited_for(
    shared: Cluster, local_ray: str
) -> None:
    job = Job("follow", "standing", 1, 1, (0,))  # nobody writes there
    with Clients(shared.name, local_ray, 1) as clients:
        (pid,) = (one.pid for one in multiprocessing.active_children())
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RayStreamError, match="ended before its work was done"):
            clients.at_once([job])
