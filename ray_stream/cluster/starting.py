"""`start` and `connect`: the two ways to a `Cluster`.

Owns: their arguments, attaching to what runs already, and what leaving the `with` block ends.
Refuses: the order of a start (`actors.bootstrap`), which Ray (`cluster.embedded`).
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from ray_stream.actors import boot, bootstrap
from ray_stream.actors.boot import DATA_DIR_VARIABLE, data_root
from ray_stream.actors.settings import ClusterSpec, Seat
from ray_stream.actors.spawning import alive_nodes
from ray_stream.client.calls import Deadline, pause
from ray_stream.clock import SystemClock
from ray_stream.cluster import embedded
from ray_stream.cluster.handle import Cluster, end_noting
from ray_stream.config import ClusterConfig, check_cluster_name, validated
from ray_stream.errors import (
    ClusterConfigMismatchError,
    ClusterNotFoundError,
    DataDirError,
    InvalidArgumentError,
    TimeoutExpiredError,
)
from ray_stream.rpc.messages import API_VERSION

POLL_MS = 50
SECRET_BYTES = 32


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
        data_dir: a path on every node; default: `RAY_STREAM_DATA_DIR` here, then on each node, else
            a per-user directory.
        nodes: labels of the Ray nodes that get a broker; default: the nodes alive now.
        config: settings of the cluster, as `ClusterConfig`.

    Returns:
        A handle. Every topic, record and offset that the directories hold is there again.

    Raises:
        ClusterConfigMismatchError: it runs with another `data_dir`, `nodes` or `config`.
        DataDirError: the directory cannot be used; the subclass and the message say why.
        TimeoutExpiredError: not up within `start_timeout_ms`.
    """
    check_cluster_name(name)
    settings = validated(ClusterConfig, config or {}, "cluster")
    path = _absolute(data_dir)
    root = Path(data_root(path, name))
    with embedded.JOINING:
        connected = embedded.find_ray(address, root)
        if connected is None:
            boot.make_root(root)
            connected = embedded.start_local_ray()
    on_exit = _end(name, connected.address, root) if connected.started_here else None
    try:
        deadline = Deadline(SystemClock(), settings.start_timeout_ms / 1000)
        wanted = _wanted(name, data_dir, path, nodes, settings)
        spec, seat = _attach_or_start(wanted, data_dir is not None, config or {}, deadline)
        cluster = Cluster(name, seat.cluster_id, connected.address, on_exit=on_exit)
        _wait_until_served(cluster, spec, deadline)
        embedded.announce(root)
    except BaseException as error:
        if on_exit is not None:
            end_noting(on_exit, error)
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
    with embedded.JOINING:
        connected = embedded.find_ray(address, Path(data_root(_absolute(data_dir), name)))
    if connected is None:
        raise ClusterNotFoundError(
            f"no Ray is running here and none is named by address or RAY_ADDRESS, so cluster "
            f"{name!r} cannot be found: start it with ray_stream.start(name={name!r}), or pass "
            "address= (or the data_dir= of an embedded one)"
        )
    found = bootstrap.find_cluster(name)
    if found is None:
        raise ClusterNotFoundError(
            f"no cluster named {name!r} runs in the Ray at {connected.address}: start it with "
            f"ray_stream.start(name={name!r}) or `ray-stream start --name {name}`"
        )
    _, seat = found
    return Cluster(name, seat.cluster_id, connected.address)


def _end(name: str, address: str, root: Path) -> Any:
    """What ends a cluster together with the local Ray that was started for it.

    It raises RayNotRunningError, when it has ended everything, if that Ray was gone before.
    """

    def end() -> None:
        try:
            if embedded.is_here(address):
                embedded.unless_it_ends(lambda: bootstrap.stop_cluster(name))
        finally:
            embedded.stop_local_ray(root)

    return end


def _wanted(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    path: str | None,
    nodes: Mapping[str, str] | None,
    settings: ClusterConfig,
) -> ClusterSpec:
    """The spec of the cluster that the caller means, were it started now."""
    alive = alive_nodes()
    selector = None if nodes is None else dict(nodes)
    if data_dir is not None and len(alive) > 1 and not Path(data_dir).is_absolute():
        raise DataDirError(
            f"data_dir={os.fspath(data_dir)!r} is relative and this Ray has {len(alive)} nodes: "
            "give an absolute path that is valid on each of them"
        )
    return ClusterSpec(
        name=name,
        data_dir=path,
        selector=selector,
        node_ids=[
            node_id
            for node_id, node in alive.items()
            if selector is None or selector.items() <= (node.get("Labels") or {}).items()
        ],
        config=settings,
        api_version=API_VERSION,
        secret=secrets.token_hex(SECRET_BYTES),
    )


def _attach_or_start(
    wanted: ClusterSpec, names_data: bool, given: Mapping[str, Any], deadline: Deadline
) -> tuple[ClusterSpec, Seat]:
    running = bootstrap.running_spec(wanted.name)
    if running is not None:
        _check_same(running, wanted, names_data, given)
        found = bootstrap.find_cluster(wanted.name)
        if found is not None and bootstrap.controller_lives(wanted.name):
            return found
    if not wanted.node_ids:
        raise InvalidArgumentError(
            f"no living Ray node has the labels {wanted.selector}: see `ray list nodes`"
        )
    near = ray.get_runtime_context().get_node_id()
    return bootstrap.start_cluster(wanted, near, deadline.left_ms() / 1000)


def _check_same(
    running: ClusterSpec, wanted: ClusterSpec, names_data: bool, given: Mapping[str, Any]
) -> None:
    name = running.name
    here = data_root(running.data_dir, name)
    if names_data and data_root(wanted.data_dir, name) != here:
        raise ClusterConfigMismatchError(
            f"cluster {name!r} runs with its data in {here!r}, not in "
            f"{data_root(wanted.data_dir, name)!r}: leave data_dir out to attach, or use another "
            "name"
        )
    if wanted.selector is not None and wanted.selector != running.selector:
        raise ClusterConfigMismatchError(
            f"cluster {name!r} runs with nodes={running.selector}, not {wanted.selector}: leave "
            "nodes out to attach, or stop the cluster first"
        )
    for key in given:
        ours, theirs = getattr(wanted.config, key), getattr(running.config, key)
        if ours != theirs:
            raise ClusterConfigMismatchError(
                f"cluster {name!r} runs with {key}={theirs!r}, not {ours!r}: leave config "
                "out to attach, or stop the cluster first"
            )


def _absolute(data_dir: str | os.PathLike[str] | None) -> str | None:
    """The directory as the nodes are told it; None: each node's own default.

    What the caller's environment says counts before the nodes' own.
    """
    chosen = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE) or None
    if chosen is None:
        return None
    try:
        given = os.fsdecode(chosen)
    except TypeError:
        raise DataDirError(
            f"data_dir={chosen!r} is no path: give a directory as str or Path"
        ) from None
    if not given or "\0" in given:
        raise DataDirError(f"data_dir={given!r} names no directory: give one, or leave it out")
    return str(Path(given).absolute())


def _wait_until_served(cluster: Cluster, spec: ClusterSpec, deadline: Deadline) -> None:
    """Wait for every broker, and for partitions that one is opening.

    What stays down is no reason to wait: `describe_topic` tells why.
    """
    while True:
        nodes = sum(node_id in spec.node_ids for node_id in alive_nodes())
        metadata = cluster.metadata(max(1.0, deadline.left_ms() / 1000), topics=[])
        # Only with a directory does a broker take its share of the next topic's partitions.
        brokers = sum(broker.alive and bool(broker.directories) for broker in metadata.brokers)
        opening = metadata.opening
        if brokers >= nodes and not opening:
            return
        if not deadline.left_ms():
            raise TimeoutExpiredError(
                f"cluster {cluster.name!r} runs, but after {deadline.timeout_s:g} s "
                f"{brokers} of {nodes} brokers are up and {opening} partitions are still being "
                "opened; attach to it with ray_stream.connect(), or raise start_timeout_ms"
            )
        pause(POLL_MS)
