"""`start` and `connect`: the two ways to a `Cluster`.

Owns: their arguments, attaching to what runs already, and what leaving the `with` block ends.
Refuses: the order of a start (`actors.bootstrap`), which Ray (`cluster.embedded`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray

from ray_stream.actors import bootstrap
from ray_stream.actors.boot import DATA_DIR_VARIABLE, data_root
from ray_stream.actors.settings import ClusterSpec, Seat
from ray_stream.actors.spawning import alive_nodes
from ray_stream.client.calls import pause
from ray_stream.cluster.embedded import find_ray, start_local_ray, stop_local_ray
from ray_stream.cluster.handle import Cluster
from ray_stream.config import ClusterConfig, check_cluster_name, validated
from ray_stream.errors import (
    ClusterConfigMismatchError,
    ClusterNotFoundError,
    DataDirError,
    InvalidArgumentError,
    TimeoutExpiredError,
)
from ray_stream.rpc.messages import API_VERSION

POLL_MS = 100


def start(
    *,
    name: str = "default",
    address: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    nodes: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Cluster:
    """Start a cluster, or attach to the one of that name which runs already.

    Which Ray: the initialised one; `address` or `RAY_ADDRESS`; the living one that an earlier
    `start` on this `data_dir` began; otherwise a local one that this call starts and that ends with
    the `with` block.

    Args:
        name: of the cluster; several live side by side.
        address: `host:port` of a running Ray.
        data_dir: a path on every node; default: `RAY_STREAM_DATA_DIR`, else a per-user directory.
        nodes: labels of the Ray nodes that get a broker; default: the nodes alive now.
        config: settings of the cluster, as `ClusterConfig`.

    Returns:
        A handle. Every topic, record and offset that the directories hold is there again.

    Raises:
        ClusterConfigMismatchError: it runs with another `data_dir` or `config`.
        DataDirError: the directory cannot be used; the subclass and the message say why.
        TimeoutExpiredError: not up within `start_timeout_ms`.
    """
    check_cluster_name(name)
    settings = validated(ClusterConfig, config or {}, "cluster")
    path = _absolute(data_dir)
    root = _usable(Path(data_root(path, name)))
    connected = find_ray(address, root)
    if connected is None:
        connected = start_local_ray(root)

    def on_exit() -> None:
        bootstrap.stop_cluster(name)
        stop_local_ray(root)

    try:
        spec, seat = _attach_or_start(name, data_dir, path, nodes, config, settings)
        cluster = Cluster(
            name,
            seat.cluster_id,
            connected.address,
            on_exit=on_exit if connected.started_here else None,
        )
        _wait_until_served(cluster, spec)
    except BaseException:
        if connected.started_here:
            on_exit()
        raise
    return cluster


def connect(
    *,
    name: str = "default",
    address: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Cluster:
    """A handle on a running cluster, from any driver, task, actor or notebook.

    Args:
        name: of the cluster.
        address: `host:port` of its Ray; default: the initialised one, `RAY_ADDRESS`, or a living
            embedded one.
        data_dir: where to look for an embedded one, as given to its `start`.

    Raises:
        ClusterNotFoundError: no such cluster runs where we looked; nothing is started.
    """
    check_cluster_name(name)
    root = Path(data_root(_absolute(data_dir), name))
    if find_ray(address, root) is None:
        raise ClusterNotFoundError(
            f"no Ray is running here and none is named by address or RAY_ADDRESS, so cluster "
            f"{name!r} cannot be found: start it with ray_stream.start(name={name!r}), or pass "
            "address= (or the data_dir= of an embedded one)"
        )
    found = bootstrap.find_cluster(name)
    if found is None:
        raise ClusterNotFoundError(
            f"no cluster named {name!r} runs in this Ray: start it with "
            f"ray_stream.start(name={name!r}) or `ray-stream start --name {name}`"
        )
    _, seat = found
    return Cluster(name, seat.cluster_id, str(ray.get_runtime_context().gcs_address))


def _attach_or_start(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    path: str | None,
    nodes: Mapping[str, str] | None,
    config: Mapping[str, Any] | None,
    settings: ClusterConfig,
) -> tuple[ClusterSpec, Seat]:
    alive = alive_nodes()
    chosen = [
        node_id
        for node_id, node in alive.items()
        if nodes is None or dict(nodes).items() <= (node.get("Labels") or {}).items()
    ]
    if not chosen:
        raise InvalidArgumentError(
            f"no living Ray node has the labels {dict(nodes or {})}: see `ray list nodes`"
        )
    spec = ClusterSpec(
        name=name,
        data_dir=path,
        selector=None if nodes is None else dict(nodes),
        node_ids=chosen,
        config=settings,
        api_version=API_VERSION,
    )
    found = bootstrap.find_cluster(name)
    if found is not None:
        running, seat = found
        _check_same(running, spec, config)
        if bootstrap.controller_lives(name):
            return running, seat
        spec = msgspec.structs.replace(spec, data_dir=running.data_dir, config=running.config)
    elif data_dir is not None and len(alive) > 1 and not Path(data_dir).is_absolute():
        raise DataDirError(
            f"data_dir={os.fspath(data_dir)!r} is relative and this Ray has {len(alive)} nodes: "
            "give an absolute path that is valid on each of them"
        )
    return spec, bootstrap.start_cluster(spec, ray.get_runtime_context().get_node_id())


def _check_same(
    running: ClusterSpec, wanted: ClusterSpec, config: Mapping[str, Any] | None
) -> None:
    if wanted.data_dir is not None and wanted.data_dir != running.data_dir:
        raise ClusterConfigMismatchError(
            f"cluster {running.name!r} runs with data_dir={running.data_dir!r}, not "
            f"{wanted.data_dir!r}: leave data_dir out to attach, or use another name"
        )
    for key in config or {}:
        ours, theirs = getattr(wanted.config, key), getattr(running.config, key)
        if ours != theirs:
            raise ClusterConfigMismatchError(
                f"cluster {running.name!r} runs with {key}={theirs!r}, not {ours!r}: leave config "
                "out to attach, or stop the cluster first"
            )


def _absolute(data_dir: str | os.PathLike[str] | None) -> str | None:
    if data_dir is None:
        return None
    if not os.fspath(data_dir):
        raise DataDirError("data_dir is empty: give a directory, or leave it out")
    return str(Path(data_dir).absolute())


def _usable(root: Path) -> Path:
    """Refuse early what no node could use either; other nodes check their own."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:
        raise DataDirError(f"{root} is a file: data_dir must be a directory") from error
    except OSError as error:
        raise DataDirError(
            f"{root} cannot be made ({error.strerror}): give a data_dir that this user may write, "
            f"or set {DATA_DIR_VARIABLE}"
        ) from error
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise DataDirError(f"{root} cannot be written by this user: give another data_dir")
    return root


def _wait_until_served(cluster: Cluster, spec: ClusterSpec) -> None:
    """Wait for every broker, and for partitions that one is opening.

    What stays down is no reason to wait: `describe_topic` tells why.
    """
    clock = cluster.clock
    timeout_ms = spec.config.start_timeout_ms
    deadline_ms = clock.monotonic_ms() + timeout_ms
    while True:
        nodes = sum(node_id in spec.node_ids for node_id in alive_nodes())
        left_s = max(1.0, (deadline_ms - clock.monotonic_ms()) / 1000)
        metadata = cluster.metadata(left_s)
        brokers = sum(broker.alive for broker in metadata.brokers)
        opening = sum(
            partition.opening for topic in metadata.topics for partition in topic.partitions
        )
        if brokers >= nodes and not opening:
            return
        if clock.monotonic_ms() > deadline_ms:
            raise TimeoutExpiredError(
                f"cluster {cluster.name!r} runs, but after {timeout_ms} ms "
                f"{brokers} of {nodes} brokers are up and {opening} partitions are still being "
                "opened; attach to it with ray_stream.connect(), or raise start_timeout_ms"
            )
        pause(POLL_MS)
