"""The actors behind a cluster: how many, what they are to Ray, and what a person sees of them."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from ray._private import state
from ray.core.generated import gcs_pb2

from ray_stream import Cluster
from ray_stream.actors import spawning
from ray_stream.cluster import inspection
from ray_stream.rpc.hosting import HostDescribed
from tests.ray.drivers import is_running, wait_until_ended

pytestmark = pytest.mark.ray
KINDS = {
    "controller": "ControllerActor",
    "broker": "BrokerActor",
    "host": "PartitionActor",
}


@pytest.fixture
def shared_topic(shared: Cluster) -> Iterator[Cluster]:
    """The shared cluster with a topic `six` of six partitions."""
    shared.create_topic("six", partitions=6)
    yield shared
    shared.delete_topic("six")


def hosts_of(cluster: Cluster, topic: str) -> dict[str, list[int]]:
    """Partitions of a topic by partition actor."""
    topic_id = cluster.describe_topic(topic).topic_id
    found: dict[str, list[int]] = {}
    for host in inspection.partition_actors(cluster):
        numbers = [one.partition for one in host.served if one.topic_id == topic_id]
        if numbers:
            found[host.host] = sorted(numbers)
    return found


def actors(cluster: Cluster) -> dict[str, Any]:
    """Handles of all actors of a cluster by name."""
    return {name: spawning.find(name) for name in spawning.living_actors(cluster.name)}


def ray_knows(actor: Any) -> Any:  # noqa: ANN401 - neither of the two has a type
    """What Ray's own table says about an actor."""
    raw = state.state._connect_and_get_accessor().get_actor_info(actor._actor_id)
    return gcs_pb2.ActorTableData.FromString(raw)  # type: ignore[attr-defined]  # made by protoc


def test_six_partitions_share_the_two_actors_of_a_node(shared_topic: Cluster) -> None:
    hosts = hosts_of(shared_topic, "six")
    assert sorted(map(len, hosts.values())) == [3, 3]
    assert sorted(chain.from_iterable(hosts.values())) == list(range(6))


def test_a_dedicated_topic_has_actors_of_its_own_and_they_end_with_it(
    shared_topic: Cluster,
) -> None:
    before = {host.host: host for host in inspection.partition_actors(shared_topic)}
    shared_topic.create_topic("own", partitions=2, dedicated=True)
    own = hosts_of(shared_topic, "own")
    assert sorted(map(len, own.values())) == [1, 1]
    assert not own.keys() & before.keys()
    during: dict[str, HostDescribed] = {
        host.host: host for host in inspection.partition_actors(shared_topic)
    }
    with shared_topic.producer() as producer:
        assert producer.send_and_wait("own", b"x", partition=1).offset == 0
    shared_topic.delete_topic("own")
    wait_until_ended([during[name].pid for name in own])
    assert all(is_running(host.pid) for host in before.values())


def test_every_actor_is_named_detached_free_of_charge_and_restarted_by_nobody_but_us(
    shared_topic: Cluster,
) -> None:
    found = actors(shared_topic)
    names = [name.split("/")[1] for name in found]
    assert sorted(names) == ["broker", "controller", "host", "host"]
    for name, actor in found.items():
        known = ray_knows(actor)
        assert known.name == name
        assert known.ray_namespace == spawning.NAMESPACE
        assert known.class_name == KINDS[name.split("/")[1]]
        assert known.is_detached
        assert known.max_restarts == 0
        assert dict(known.required_resources) == {}
        assert actor.ping._max_task_retries == 0


def test_processes_are_titled_by_what_they_are(shared_topic: Cluster) -> None:
    for name, actor in actors(shared_topic).items():
        pid = ray_knows(actor).pid
        title = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        assert title.startswith(f"ray::{KINDS[name.split('/')[1]]}")
