"""Groups of consumer actors on a real Ray: what their owner is promised."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest
import ray

from ray_stream import Cluster, ConsumerGroup, TopicPartition, errors
from ray_stream.types import ConsumerGroupStatus
from tests.ray.drivers import Driver, wait_until_ended

pytestmark = pytest.mark.ray

PATIENCE_S = 90.0
PARTITIONS = 6
HELD = 200
"""Records in each partition of a topic."""


@pytest.fixture
def topic(shared: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A topic of the test's own, with records."""
    name = request.node.name.split("[")[0][:200]
    shared.create_topic(name, partitions=PARTITIONS)
    fill(shared, name)
    yield name
    shared.delete_topic(name)


def fill(cluster: Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        for number in range(PARTITIONS):
            values = [b"%d" % offset for offset in range(HELD)]
            producer.send_batch(topic, values, partition=number)


def until(
    group: ConsumerGroup, is_so: Callable[[ConsumerGroupStatus], object]
) -> ConsumerGroupStatus:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so(status := group.status()):
        assert time.monotonic() < deadline, str(status)
        time.sleep(0.05)
    return status


def owned(status: ConsumerGroupStatus) -> list[int]:
    """Partitions that somebody owns, by number; twice what two own."""
    return sorted(name.partition for one in status.members for name in one.partitions)


def all_owned(status: ConsumerGroupStatus) -> bool:
    return owned(status) == list(range(PARTITIONS))


@pytest.mark.slow
def test_three_become_eight_with_two_idle_and_two_again_and_a_killed_one_is_replaced(
    shared: Cluster, topic: str
) -> None:
    """Every record is handled; results tell so."""

    def handle(batch: list[Any]) -> list[tuple[int, int]]:
        return [(one.partition, one.offset) for one in batch]

    handled: set[tuple[int, int]] = set()
    everything = {(number, offset) for number in range(PARTITIONS) for offset in range(HELD)}
    with shared.run_consumers(
        handle, topics=topic, group="grows", actors=2, auto_offset_reset="earliest"
    ) as group:
        group.wait(idle=0, timeout=PATIENCE_S)
        status = until(group, lambda one: all_owned(one) and len(one.members) == 2)
        victim, survivor = status.members
        os.kill(victim.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        status = until(group, lambda one: one.restarts and all_owned(one))
        assert time.monotonic() - killed_s < 20, "its session alone would take longer"
        assert survivor.name in [one.name for one in status.members]
        assert victim.name in status.last_error

        group.scale(8)
        status = until(
            group,
            lambda one: (
                [len(each.partitions) for each in one.members].count(1) == 6
                and [each.state for each in one.members].count("idle") == 2
            ),
        )
        assert all_owned(status)

        group.scale(2)
        status = until(group, lambda one: all_owned(one) and len(one.members) == 2)
        fill(shared, topic)
        group.wait(idle=0.2, timeout=PATIENCE_S)
        assert sum(group.status().lag.values()) == 0
    assert group.status().state == "stopped"
    for result in group.results():
        handled.update(tuple(one) for one in result)
    assert {offset for _, offset in handled} == set(range(2 * HELD))
    assert handled >= everything
    assert shared.describe_group("grows").members == ()


def test_latest_means_when_the_group_was_made_however_long_its_actors_take(
    shared: Cluster, topic: str
) -> None:
    def handle(batch: pd.DataFrame) -> list[int]:
        return [*batch["offset"]]

    with shared.run_consumers(handle, topics=[topic], group="late", batch_format="pandas") as group:
        fill(shared, topic)
        group.wait(idle=0, timeout=PATIENCE_S)
    offsets = sorted(offset for result in group.results() for offset in result)
    assert offsets == sorted(PARTITIONS * list(range(HELD, 2 * HELD)))


@pytest.mark.parametrize("on_error", ["stop", "retry", "skip"])
def test_a_handler_that_raises(
    shared: Cluster, topic: str, tmp_path: Path, on_error: Literal["stop", "retry", "skip"]
) -> None:
    marker = tmp_path / "healed"

    def handle(batch: pa.Table) -> int:
        first = batch["offset"][0].as_py()
        if batch["partition"][0].as_py() == 3 and not marker.exists():
            raise LookupError(f"no flight at {first}")
        return len(batch)

    made = shared.run_consumers(
        handle,
        topics=topic,
        group=f"raises {on_error}",
        batch_format="arrow",
        max_records=HELD,
        on_error=on_error,
        auto_offset_reset="earliest",
    )
    place = TopicPartition(topic, 3)
    if on_error == "stop":
        with pytest.raises(errors.HandlerError, match="LookupError: no flight at 0") as raised:
            made.wait(timeout=PATIENCE_S)
        assert isinstance(raised.value.__cause__, LookupError)
        assert "in handle" in raised.value.traceback
        assert until(made, lambda one: not one.members).state == "failed"
        with pytest.raises(errors.HandlerError):
            list(made.results())
        assert shared.describe_group(made.name).committed.get(place, 0) == 0
    elif on_error == "retry":
        with made as group:
            until(group, lambda one: one.errors >= 2 and "LookupError" in one.last_error)
            marker.touch()
            group.wait(idle=0, timeout=PATIENCE_S)
            until(group, lambda one: one.records == PARTITIONS * HELD)
    else:
        with made as group:
            group.wait(idle=0, timeout=PATIENCE_S)
            until(group, lambda one: one.skipped == HELD)
            until(group, lambda one: one.records == (PARTITIONS - 1) * HELD)
    made.stop()


def test_a_class_is_built_in_each_actor_and_a_failing_one_stops_the_group_at_once(
    shared: Cluster, topic: str
) -> None:
    class Model:
        def __init__(self, weight: int) -> None:
            if weight < 0:
                raise ValueError(f"weight {weight}")
            self.weight = weight

        def __call__(self, batch: list[Any]) -> int:
            return self.weight * len(batch)

    chosen: dict[str, Any] = {"topics": topic, "group": "model", "auto_offset_reset": "earliest"}
    with shared.run_consumers(Model, constructor_args=(2,), **chosen) as group:
        group.wait(idle=0, timeout=PATIENCE_S)
    assert sum(group.results()) == 2 * PARTITIONS * HELD

    failed = shared.run_consumers(Model, constructor_args=(-1,), actors=2, **chosen)
    with pytest.raises(errors.HandlerError, match=r"making Model failed .* ValueError: weight -1"):
        failed.wait(timeout=PATIENCE_S)
    status = until(failed, lambda one: not one.members)
    assert (status.state, status.restarts) == ("failed", 0)


def test_a_handler_that_kills_its_process_gets_its_batch_again(
    shared: Cluster, topic: str, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    def handle(batch: list[Any]) -> tuple[int, int]:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch[0].partition, batch[0].offset

    with shared.run_consumers(
        handle, topics=topic, group="dies", max_records=HELD, auto_offset_reset="earliest"
    ) as group:
        group.wait(idle=0, timeout=PATIENCE_S)
        assert group.status().restarts == 1
    assert {tuple(one) for one in group.results()} >= {(n, 0) for n in range(PARTITIONS)}


def test_what_hangs_and_what_ray_cannot_place_is_named(shared: Cluster, topic: str) -> None:
    def hang(batch: list[Any]) -> None:
        del batch
        time.sleep(3600)

    hanging = shared.run_consumers(
        hang,
        topics=topic,
        group="hangs",
        auto_offset_reset="earliest",
        max_poll_interval_ms=500,
    )
    pending = shared.run_consumers(
        hang, topics=topic, group="pends", ray_actor_options={"resources": {"quantum": 1}}
    )
    status = until(pending, lambda one: one.members[0].state.startswith("pending"))
    assert "needs {'resources': {'quantum': 1}}" in status.members[0].state
    assert "none of the 1 Ray nodes has" in status.members[0].state
    pending.stop()
    status = until(hanging, lambda one: one.members and one.members[0].state.startswith("hangs"))
    assert status.members[0].busy_s >= 0.5
    with pytest.raises(errors.TimeoutExpiredError, match="1 consumer actors did not end"):
        hanging.stop(timeout=0.2)
    wait_until_ended([status.members[0].pid])


def test_bad_arguments_start_nothing(shared: Cluster, topic: str) -> None:
    lock = ray.put(0)

    def handle(batch: object) -> object:
        return batch, lock

    def refused(kind: type[Exception], text: str, **arguments: Any) -> None:  # noqa: ANN401
        chosen = {"handler": handle, "topics": topic, "group": "none", **arguments}
        with pytest.raises(kind, match=text):
            shared.run_consumers(**chosen)

    refused(errors.InvalidArgumentError, "actors=0", actors=0)
    refused(errors.UnknownTopicOrPartitionError, "'nowhere'", topics=["nowhere"])
    refused(errors.InvalidArgumentError, "num_cpu", ray_actor_options={"num_cpu": 1})
    refused(
        errors.InvalidArgumentError,
        "cannot be sent to actors",
        constructor_args=(),
        handler=_Locked(),
    )
    assert "none" not in shared.groups()


class _Locked:
    def __call__(self, batch: object) -> None:
        """Nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("cannot pickle a lock")


def test_actors_end_with_the_process_that_made_them(shared: Cluster, topic: str) -> None:
    script = f"""
    cluster = ray_stream.connect(name={shared.name!r}, address={shared.address!r})
    group = cluster.run_consumers(len, topics={topic!r}, group="owned", actors=2,
                                  auto_offset_reset="earliest")
    group.wait(idle=0, timeout=60)
    tell([one.pid for one in group.status().members])
    hear()
    group.wait(idle=3600)
    """
    with Driver(script) as driver:
        pids = driver.hear()
        assert len(pids) == 2
        driver.say()
        os.kill(driver.pid, signal.SIGINT)
        driver.process.wait(PATIENCE_S)
        assert "KeyboardInterrupt" in driver.stderr()
    wait_until_ended(pids)
    assert shared.describe_group("owned").members == (), "they left, and nobody waits for them"
    assert sum(shared.describe_group("owned").lag.values()) == 0
