"""A node's partition actors are there before anything is placed on them, whatever is killed."""

import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

import pytest
import ray

from ray_stream import Cluster
from ray_stream.actors import spawning
from ray_stream.actors.settings import HostSettings, packed
from ray_stream.cluster import inspection
from ray_stream.config import ClusterConfig
from tests.ray.drivers import wait_until_ended

pytestmark = pytest.mark.ray
Start = Callable[..., Cluster]
PATIENCE_S = 60.0
ACTORS = 2
CONFIG = {"partition_actors_max": ACTORS}


def hosts(cluster: Cluster) -> dict[str, int]:
    """Process ids of the partition actors that the broker watches over, by name."""
    return {name: pid for name, pid in inspection.process_ids(cluster).items() if "/host/" in name}


def settled(cluster: Cluster, without: Collection[int] = ()) -> dict[str, int]:
    """As `hosts`, once all are up; those killed are `without`. There are never too many."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        named = [one for one in spawning.living_actors(cluster.name) if "/host/" in one]
        assert len(named) <= ACTORS + len(without), named
        found = hosts(cluster)
        if len(found) == ACTORS and not set(without) & set(found.values()):
            return found
        assert time.monotonic() < deadline, f"only {found} are up"
        time.sleep(0.05)


def test_they_serve_the_first_topics_and_stay_when_those_are_gone(starting: Start) -> None:
    cluster = starting("warm", config=CONFIG)
    assert cluster.topics() == []
    before = settled(cluster)
    assert all(not one.served for one in inspection.partition_actors(cluster))
    cluster.create_topic("first", partitions=1)
    cluster.create_topic("second", partitions=5)
    assert hosts(cluster) == before
    assert sorted(len(one.served) for one in inspection.partition_actors(cluster)) == [3, 3]
    cluster.delete_topic("first")
    cluster.delete_topic("second")
    cluster.create_topic("third", partitions=2)
    assert hosts(cluster) == before


def test_one_that_is_killed_while_it_is_idle_is_replaced(starting: Start) -> None:
    cluster = starting("warmkilled", config=CONFIG)
    before = settled(cluster)
    name, pid = min(before.items())
    os.kill(pid, signal.SIGKILL)
    after = settled(cluster, without={pid})
    assert name not in after, "its successor has a name of its own"
    assert before.items() & after.items(), "the other one stays"
    cluster.create_topic("first", partitions=2)
    assert hosts(cluster) == after


def test_a_new_broker_adopts_those_that_live(starting: Start) -> None:
    cluster = starting("warmadopted", config=CONFIG)
    before = settled(cluster)
    (broker,) = [pid for name, pid in inspection.process_ids(cluster).items() if "/broker/" in name]
    os.kill(broker, signal.SIGKILL)
    wait_until_ended([broker])
    assert settled(cluster) == before
    cluster.create_topic("first", partitions=2)
    assert hosts(cluster) == before


def test_a_new_broker_also_adopts_one_whose_start_nobody_had_asked_for(starting: Start) -> None:
    """Its broker was killed between making the actor and starting it."""
    from ray_stream.actors.partition import PartitionActorClass

    cluster = starting("warmborn", config=CONFIG)
    before = settled(cluster)
    names = inspection.process_ids(cluster)
    (broker_name,) = [name for name in names if "/broker/" in name]
    (node_id,) = [broker.node_id for broker in cluster.metadata().brokers]
    lost = next(iter(before))
    os.kill(names[broker_name], signal.SIGSTOP)
    os.kill(before[lost], signal.SIGKILL)
    slot = lost.rpartition("/")[2].split(".")[0]
    host = spawning.host_name(cluster.name, node_id, f"{slot}.earlier.1")
    settings = HostSettings(
        cluster=cluster.name, host=host, node_id=node_id, config=ClusterConfig(), secret=""
    )
    actor: Any = PartitionActorClass.options(**spawning.options(host, node_id)).remote(
        packed(settings)
    )
    ray.get(actor.ping.remote())
    os.kill(names[broker_name], signal.SIGKILL)
    after = settled(cluster, without={before[lost]})
    assert host in after
    cluster.create_topic("first", partitions=2)
    assert hosts(cluster) == after


def test_they_end_with_the_cluster(starting: Start) -> None:
    cluster = starting("warmstopped", config=CONFIG)
    pids = list(settled(cluster).values())
    cluster.shutdown()
    wait_until_ended(pids)
    assert spawning.living_actors("warmstopped") == []


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_a_cluster_that_is_stopped_while_they_start_leaves_none_behind(
    starting: Start, after_s: float
) -> None:
    cluster = starting("warmbrief", config=CONFIG)
    time.sleep(after_s)
    begun = time.monotonic()
    found = hosts(cluster)
    cluster.shutdown()
    assert spawning.living_actors("warmbrief") == []
    assert time.monotonic() - begun < 15, "it waited in vain for one to end"
    wait_until_ended(list(found.values()))
