"""Handles: where they work, how they travel, and what they say when they do not work any more."""

import pickle
from collections.abc import Callable

import pytest
import ray

import ray_stream
from ray_stream import Cluster, errors
from tests.ray.drivers import Driver, run

pytestmark = pytest.mark.ray

USES: dict[str, Callable[[Cluster], object]] = {
    "alter_topic": lambda cluster: cluster.alter_topic("t", partitions=2),
    "consumer": lambda cluster: cluster.consumer("t"),
    "create_topic": lambda cluster: cluster.create_topic("t"),
    "delete_group": lambda cluster: cluster.delete_group("g"),
    "delete_topic": lambda cluster: cluster.delete_topic("t"),
    "describe_group": lambda cluster: cluster.describe_group("g"),
    "describe_groups": lambda cluster: cluster.describe_groups(),
    "describe_topic": lambda cluster: cluster.describe_topic("t"),
    "enter": lambda cluster: cluster.__enter__(),
    "groups": lambda cluster: cluster.groups(),
    "metadata": lambda cluster: cluster.metadata(),
    "pickle": pickle.dumps,
    "producer": lambda cluster: cluster.producer(),
    "read": lambda cluster: cluster.read("t"),
    "read_batches": lambda cluster: cluster.read_batches("t"),
    "reset_offsets": lambda cluster: cluster.reset_offsets("g", "t", 0),
    "run_consumers": lambda cluster: cluster.run_consumers(print, topics="t", group="g"),
    "shutdown": lambda cluster: cluster.shutdown(),
    "topics": lambda cluster: cluster.topics(),
}


def test_the_uses_are_all_that_a_handle_can_do() -> None:
    public = {name for name in vars(Cluster) if not name.startswith("_")}
    answered_when_closed = {"address", "clock", "close", "cluster_id", "embedded", "name"}
    assert public - answered_when_closed == USES.keys() - {"enter", "pickle"}


@pytest.mark.parametrize("use", USES)
def test_a_closed_handle_says_so(shared: Cluster, use: str) -> None:
    cluster = ray_stream.connect(name=shared.name)
    cluster.close()
    cluster.close()
    with pytest.raises(errors.ClosedError, match=r"ray_stream\.connect"):
        USES[use](cluster)
    assert shared.metadata().cluster_id == cluster.cluster_id, "more than the handle was closed"


def test_a_handle_works_in_tasks_and_actors(shared: Cluster) -> None:
    shared.create_topic("travel")

    @ray.remote
    def write(cluster: Cluster) -> tuple[str, bool, int]:
        with cluster.producer() as producer:
            meta = producer.send_and_wait("travel", b"from a task")
        return cluster.cluster_id, cluster.embedded, meta.offset

    @ray.remote
    class Writer:
        def __init__(self, cluster: Cluster) -> None:
            self.producer = cluster.producer()

        def write(self, value: bytes) -> int:
            return self.producer.send_and_wait("travel", value).offset

    try:
        task = ray.get(write.options(num_cpus=0).remote(shared), timeout=60)
        assert task == (shared.cluster_id, False, 0)
        writer = Writer.options(num_cpus=0).remote(shared)  # type: ignore[attr-defined]
        assert ray.get(writer.write.remote(b"from an actor"), timeout=60) == 1
        values = [
            record.value
            for record in shared.consumer("travel", until="end", auto_offset_reset="earliest")
        ]
        assert values == [b"from a task", b"from an actor"]
    finally:
        shared.delete_topic("travel")


def test_leaving_the_block_of_a_copy_ends_nothing(shared: Cluster) -> None:
    copy: Cluster = pickle.loads(pickle.dumps(shared))
    assert (copy.name, copy.cluster_id, copy.address) == (
        shared.name,
        shared.cluster_id,
        shared.address,
    )
    with copy:
        copy.topics()
    shared.topics()


def test_a_copy_connects_by_itself_where_there_is_no_ray_yet(shared: Cluster) -> None:
    data = pickle.dumps(shared)
    before, topics, after = run(
        f"""
        import pickle, ray
        cluster = pickle.loads({data!r})
        before = ray.is_initialized()
        tell(before, cluster.topics(), ray.is_initialized())
        """
    )
    assert (before, topics, after) == (False, shared.topics(), True)


def test_a_forked_child_is_told_to_connect_anew(shared: Cluster) -> None:
    found = run(
        f"""
        import os
        cluster = ray_stream.connect(name={shared.name!r}, address={shared.address!r})
        cluster.create_topic("forked")
        producer = cluster.producer()
        consumer = cluster.consumer("forked")
        producer.send_and_wait("forked", b"x")
        child = os.fork()
        if child == 0:
            tell([refusal(cluster.topics), refusal(producer.send, "forked", b"y"),
                  refusal(consumer.poll)])
            os._exit(0)
        os.waitpid(child, 0)
        producer.send_and_wait("forked", b"z")
        producer.close()
        consumer.close()
        cluster.delete_topic("forked")
        """
    )
    assert [name for name, _ in found] == ["ForkedProcessError"] * 3
    assert "connect" in found[0][1]


def test_ray_gone_under_a_handle_is_said_and_never_started_anew(shared: Cluster) -> None:
    found = run(
        f"""
        import ray
        cluster = ray_stream.connect(name={shared.name!r}, address={shared.address!r})
        cluster.create_topic("gone")
        producer = cluster.producer(delivery_timeout_ms=10_000)
        consumer = cluster.consumer("gone", auto_offset_reset="earliest", request_timeout_ms=5_000)
        producer.send_and_wait("gone", b"x")
        assert consumer.poll(timeout=30)
        cluster.delete_topic("gone")
        ray.shutdown()
        said = [refusal(cluster.topics), refusal(cluster.create_topic, "t"),
                refusal(cluster.producer), refusal(cluster.shutdown),
                refusal(producer.send_and_wait, "gone", b"y"),
                refusal(consumer.end_offsets, [], timeout=3)]
        consumer.close()
        refusal(producer.close)
        cluster.close()
        tell(said, ray.is_initialized())
        """
    )
    said, initialized = found
    assert not initialized
    assert [one and one[0] for one in said[:4]] == ["RayNotRunningError"] * 4
    assert said[4][0] == "RayNotRunningError"


def test_another_ray_under_a_handle_is_not_mistaken_for_its_own(shared: Cluster) -> None:
    with Driver(
        f"""
        import ray
        cluster = ray_stream.connect(name={shared.name!r}, address={shared.address!r})
        cluster._address = "10.0.0.1:1"
        tell(refusal(cluster.topics))
        """
    ) as driver:
        name, message = driver.hear()
        driver.finish()
    assert name == "RayNotRunningError"
    assert "10.0.0.1:1" in message
    assert shared.address in message
