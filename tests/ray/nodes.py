"""Three raylets on one machine, and a topic that is spread over them.

The functions at the end are scenarios for a driver in a process of its own: it starts the raylets,
so it must be the one to reap them.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster

import ray_stream
from ray_stream import Cluster, errors
from ray_stream.metadata.commands import PartitionMetadata

TOPIC = "spread"
PARTITIONS = 6
PATIENCE_S = 120.0
POLL_S = 0.1
SAID_LAST = 800
"""So many characters of a worker's log tell why somebody waited in vain."""
QUIET = {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
"""No worker is slowed down, and none is killed for what the rest of the machine uses."""
HEALTH = {
    "health_check_initial_delay_ms": 1_000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}
"""A node whose raylet is gone is declared dead within seconds instead of a quarter minute."""


class Raylets:
    """A Ray of some raylets, each with an environment of its own; the first is the head."""

    def __init__(self, home: Path, environments: Sequence[dict[str, str]]) -> None:
        self._ray = RayCluster()
        self._home = home
        self.nodes = [self.add(environment) for environment in environments]

    def add(self, environment: dict[str, str]) -> Any:  # noqa: ANN401 - Ray's own node
        """One more raylet."""
        arguments: dict[str, Any] = {
            "num_cpus": 1,
            "env_vars": {**QUIET, **environment},
        }
        if self._ray.head_node is None:
            arguments |= {
                "temp_dir": str(self._home / "ray"),
                "include_dashboard": False,
                "_system_config": HEALTH,
            }
        return self._ray.add_node(**arguments)

    @property
    def address(self) -> str:
        """Of its GCS."""
        return str(self._ray.address)

    def remove(self, node: Any) -> None:  # noqa: ANN401 - Ray's own node
        """Kill a node's processes; its workers end with it."""
        self._ray.remove_node(node, allow_graceful=False)

    def orphan(self, node: Any) -> None:  # noqa: ANN401 - Ray's own node
        """Kill a node's raylet and do not reap it: its workers never notice."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def evidence(self) -> str:
        """Which nodes live, and what every worker said last."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        told = [f"{one['NodeID']}: {'alive' if one['Alive'] else 'dead'}" for one in nodes]
        logs = sorted(Path(self.nodes[0].get_logs_dir_path()).glob("worker-*.err"))
        said = [(one.name, one.read_text(encoding="utf-8", errors="replace")) for one in logs]
        return "\n".join(told + [f"{name}: {text[-SAID_LAST:]}" for name, text in said if text])

    def stop(self) -> None:
        """End all of it."""
        ray.shutdown()
        self._ray.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated


@contextmanager
def started(
    home: Path, environments: Sequence[dict[str, str]], data_dir: str | None
) -> Iterator[tuple[Raylets, Cluster]]:
    """Raylets, and the cluster on them."""
    raylets = Raylets(home, environments)
    try:
        with ray_stream.start(address=raylets.address, data_dir=data_dir) as cluster:
            try:
                yield raylets, cluster
            except AssertionError as error:
                error.add_note(raylets.evidence())
                raise
    finally:
        raylets.stop()


def partitions_of(cluster: Cluster) -> list[PartitionMetadata]:
    """Where each partition is served."""
    metadata = cluster.metadata()
    return next(one for one in metadata.topics if one.name == TOPIC).partitions


def wait_for(what: str, is_true: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if is_true():
                return
        except errors.RetriableError:
            pass  # the controller is on its way
        assert time.monotonic() < deadline, f"it did not come to be that {what}"
        time.sleep(POLL_S)


class Book:
    """What was acknowledged, by partition: all of it is there, and nothing else."""

    def __init__(self) -> None:
        self._rounds = 0
        self._written: dict[int, list[bytes]] = {one: [] for one in range(PARTITIONS)}

    def write(self, cluster: Cluster, partitions: Sequence[int] = range(PARTITIONS)) -> None:
        """One more record for each partition."""
        self._rounds += 1
        with cluster.producer(delivery_timeout_ms=int(PATIENCE_S * 1000)) as producer:
            for partition in partitions:
                value = f"{self._rounds}:{partition}".encode()
                producer.send(TOPIC, value, partition=partition)
                self._written[partition].append(value)

    def check(self, cluster: Cluster, partitions: Sequence[int] = range(PARTITIONS)) -> None:
        """Read them."""
        table = cluster.read(TOPIC, partitions=list(partitions))
        found: dict[int, list[bytes]] = {one: [] for one in partitions}
        for partition, value in zip(
            table["partition"].to_pylist(), table["value"].to_pylist(), strict=True
        ):
            found[partition].append(value)
        assert found == {one: self._written[one] for one in partitions}


def _is_spread(cluster: Cluster) -> bool:
    leaders = [one.leader for one in partitions_of(cluster)]
    return sorted(leaders.count(one) for one in set(leaders)) == [2, 2, 2]


def _is_served(cluster: Cluster, partitions: Sequence[int] = range(PARTITIONS)) -> bool:
    return all(partitions_of(cluster)[one].host for one in partitions)


def _logs(root: Path) -> set[str]:
    """Names of the logs below a data directory."""
    return {one.parent.name for one in root.rglob("partition.json")}


# --- scenarios -----------------------------------------------------------------------------------


def on_one_disk(home: Path, data_dir: str) -> None:
    """One data directory for all: whoever is there serves everything.

    The second raylet that dies is not reaped: its workers, which wait for its end, live on.
    """
    book = Book()
    three = [{"RAY_STREAM_HOST_ID": "one-host"}] * 3
    with started(home, three, data_dir) as (raylets, cluster):
        cluster.create_topic(TOPIC, partitions=PARTITIONS)
        assert _is_spread(cluster)
        book.write(cluster)
        book.check(cluster)
        for dead, die in zip(raylets.nodes[1:], (raylets.remove, raylets.orphan), strict=True):
            die(dead)
            wait_for("its broker is lost", lambda: _living(cluster) == 2)
            book.write(cluster)
            book.check(cluster)
            raylets.add(three[0])
            wait_for("three brokers live", lambda: _living(cluster) == 3)
            book.write(cluster)
            book.check(cluster)
        raylets.remove(raylets.nodes[-1])
    for count in (3, 2):
        with started(home, three[:count], data_dir) as (_, cluster):
            assert _is_served(cluster)
            book.check(cluster)
            book.write(cluster)
            book.check(cluster)


def _living(cluster: Cluster) -> int:
    return sum(one.alive for one in cluster.metadata().brokers)


def on_their_own_disks(home: Path, data_dir: Path) -> None:
    """A data directory and a host id for each: what a dead node has, nobody else makes anew."""
    book = Book()
    roots = [data_dir / name for name in "abc"]
    a, b, c = (
        {"RAY_STREAM_DATA_DIR": str(root), "RAY_STREAM_HOST_ID": root.name} for root in roots
    )
    with started(home, [a, b, c], None) as (raylets, cluster):
        cluster.create_topic(TOPIC, partitions=PARTITIONS)
        assert _is_spread(cluster)
        book.write(cluster)
        before = [_logs(root) for root in roots]
        assert [len(one) for one in before] == [2, 2, 2]
        lost = [int(name.rpartition("-")[2]) for name in before[1]]
        others = [one for one in range(PARTITIONS) if one not in lost]
        raylets.remove(raylets.nodes[1])
        wait_for("they are away", lambda: not any(partitions_of(cluster)[one].host for one in lost))
        book.write(cluster, others)
        book.check(cluster, others)
        _refused(cluster, lost[0])
        assert [_logs(root) for root in roots] == before, "made anew in another place"
        raylets.add(b)
        wait_for("they are back", lambda: _is_served(cluster))
        book.check(cluster)
        book.write(cluster)
        assert [_logs(root) for root in roots] == before, "made anew in another place"
    with started(home, [c, a, b], None) as (_, cluster):
        assert _is_served(cluster)
        book.check(cluster)
        book.write(cluster)
    with started(home, [c, a], None) as (_, cluster):
        assert _is_served(cluster, others)
        assert not any(partitions_of(cluster)[one].host for one in lost)
        book.check(cluster, others)
        book.write(cluster, others)
        assert [_logs(root) for root in roots] == before, "made anew in another place"


def _refused(cluster: Cluster, partition: int) -> None:
    with cluster.producer(delivery_timeout_ms=1_500, request_timeout_ms=1_000) as producer:
        try:
            producer.send(TOPIC, b"never", partition=partition)
            producer.flush()
        except errors.RayStreamError:
            return
    raise AssertionError(f"partition {partition} took a record while its node was dead")
