"""The names of actors, how they are found, and the options that they are started with.

Owns: every `ray.get_actor` and every actor option. Refuses: when to start what.

All are named in one namespace, detached, and never restarted by Ray: `max_restarts=0` reports a
death in 10 to 20 ms and leaves the replacement to whoever watches (STORAGE section 5). Calls are
never retried by Ray (`max_task_retries=0`): only the caller knows whether a repeat is safe.
"""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_stream.errors import LeaderNotAvailableError, RayNotRunningError

NAMESPACE = "ray_stream"
MEMBER_PREFIX = "actor:"
"""What the client id of a group member begins with that is an actor; its name follows."""
CALLS_MAX = 10_000
"""Calls parked at one actor: every waiting fetch holds one."""


def controller_name(cluster: str) -> str:
    """The controller's name; a replacement takes it over."""
    return f"{cluster}/controller"


def broker_name(cluster: str, node_id: str) -> str:
    """The name of a node's broker."""
    return f"{cluster}/broker/{node_id}"


def host_name(cluster: str, node_id: str, host: str) -> str:
    """The name of one start of a partition actor; `host` is never used twice."""
    return f"{cluster}/host/{node_id}/{host}"


def require_ray() -> None:
    """Raise RayNotRunningError unless this process is connected to Ray: no call starts one."""
    if not ray.is_initialized():
        raise RayNotRunningError(
            "Ray is not running in this process (ray.shutdown() was called?): "
            "connect again with ray_stream.connect() or ray_stream.start()"
        )


def ray_address() -> str:
    """The Ray that this process is connected to: `host:port` of its GCS."""
    require_ray()
    return str(ray.get_runtime_context().gcs_address)


def node_address() -> str:
    """The address by which other nodes reach this one."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray leaves it so


def find(name: str) -> ActorHandle[Any] | None:
    """The living actor of that name, or None."""
    require_ray()
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def living_hosts(cluster: str, node_id: str) -> list[str]:
    """Full names of a node's partition actors that Ray has not seen die."""
    prefix = f"{cluster}/host/{node_id}/"
    return sorted(
        entry["name"]
        for entry in list_named_actors(all_namespaces=True)
        if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
    )


def living_actors(cluster: str) -> list[str]:
    """Full names of every actor of a cluster that Ray has not seen die."""
    prefix = f"{cluster}/"
    return sorted(
        entry["name"]
        for entry in list_named_actors(all_namespaces=True)
        if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
    )


def options(name: str, node_id: str, *, get_if_exists: bool = False) -> dict[str, Any]:
    """Actor options: named, detached, pinned hard to a node, restarted by nobody but us."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": CALLS_MAX,
        "get_if_exists": get_if_exists,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
    }


def alive_nodes() -> dict[str, dict[str, Any]]:
    """The living nodes of this Ray cluster by their ids."""
    require_ray()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def not_served(host: str) -> LeaderNotAvailableError:
    """The error for a partition actor that is not there; nothing was sent to it."""
    return LeaderNotAvailableError(
        f"the partition actor {host!r} is gone: its partitions come up in another one"
    )
