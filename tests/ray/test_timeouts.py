"""Every public call ends within its timeout and a second, even when nobody answers."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from ray_stream import Cluster, TopicPartition, errors
from ray_stream.actors import spawning
from ray_stream.cluster import inspection

pytestmark = pytest.mark.ray
TIMEOUT_S = 1.0
Start = Callable[..., Cluster]


@pytest.fixture
def frozen(starting: Start) -> Cluster:
    """A cluster whose actors can be stopped: nobody ends them for their silence."""
    cluster = starting("frozen", config={"actor_timeout_ms": 60_000})
    cluster.create_topic("t")
    return cluster


def processes(cluster: Cluster) -> list[int]:
    controller: Any = spawning.find(spawning.controller_name(cluster.name))
    return [ray.get(controller.ping.remote()), *inspection.process_ids(cluster).values()]


def test_calls_end_in_time_while_every_actor_is_silent(frozen: Cluster) -> None:
    quick = frozen.producer(max_block_ms=1_000, delivery_timeout_ms=1_000, linger_ms=0)
    slow = frozen.producer()
    # A consumer is one thread's, so each call gets its own.
    consumers = [
        frozen.consumer("t", auto_offset_reset="earliest", request_timeout_ms=1_000)
        for _ in range(4)
    ]
    partition = TopicPartition("t", 0)
    slow.send_and_wait("t", b"x")
    pids = processes(frozen)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    slow.send("t", b"y")
    calls: dict[str, Callable[[], object]] = {
        "topics": lambda: frozen.topics(timeout=TIMEOUT_S),
        "create_topic": lambda: frozen.create_topic("new", timeout=TIMEOUT_S),
        "describe_topic": lambda: frozen.describe_topic("t", timeout=TIMEOUT_S),
        "alter_topic": lambda: frozen.alter_topic("t", partitions=2, timeout=TIMEOUT_S),
        "delete_topic": lambda: frozen.delete_topic("t", timeout=TIMEOUT_S),
        "metadata": lambda: frozen.metadata(TIMEOUT_S),
        "send": lambda: quick.send("unheard-of", b"x"),
        "send_and_wait": lambda: quick.send_and_wait("t", b"x"),
        "flush": lambda: slow.flush(TIMEOUT_S),
        "position": lambda: consumers[0].position(partition, timeout=TIMEOUT_S),
        "end_offsets": lambda: consumers[1].end_offsets([partition], timeout=TIMEOUT_S),
        "lag": lambda: consumers[2].lag(timeout=TIMEOUT_S),
        "poll": lambda: consumers[3].poll(timeout=TIMEOUT_S),
        "consumer": lambda: frozen.consumer("t", request_timeout_ms=1_000),
    }
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            ends = dict(zip(calls, pool.map(_timed, calls.values()), strict=True))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    late = {name: end for name, (end, _) in ends.items() if end > TIMEOUT_S + 1}
    assert not late
    answered = {name for name, (_, error) in ends.items() if error is None}
    assert answered == {"poll", "position"}
    for name, (_, error) in ends.items():
        assert error is None or isinstance(error, errors.RayStreamError), name
    for consumer in consumers:
        consumer.close()
    slow.close()
    quick.close()


def _timed(call: Callable[[], object]) -> tuple[float, Exception | None]:
    began = time.monotonic()
    try:
        call()
    except Exception as error:  # noqa: BLE001 - judged by the test
        return time.monotonic() - began, error
    return time.monotonic() - began, None
