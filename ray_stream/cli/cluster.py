"""`start`, `status`, `stop`: the life of a cluster.

Owns: the foreground life of an embedded cluster, and what `status` shows. Refuses: which Ray, and
the order of a start (`ray_stream.start`).
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

import ray_stream
from ray_stream.cli.application import FAILED
from ray_stream.cli.group import summary
from ray_stream.cli.options import Target, cluster_options, config_option, json_option
from ray_stream.cli.output import note, print_json, print_table, waiting
from ray_stream.config import INTERNAL_PREFIX
from ray_stream.errors import RayNotRunningError, TimeoutExpiredError

if TYPE_CHECKING:
    from ray_stream.cluster.handle import Cluster
    from ray_stream.metadata.commands import BrokerMetadata, TopicMetadata

GROUPS_S = 5.0
"""How long `status` waits for the groups' coordinators."""
LOOK_S = 1.0
"""How often a foreground cluster looks whether `ray-stream stop` ended it."""


@click.command()
@cluster_options
@config_option("A setting of the cluster, such as partition_actors_max=4")
@click.option(
    "--node-label", "labels", multiple=True, metavar="KEY=VALUE",
    help="Only Ray nodes with this label get a broker; may be repeated.",
)  # fmt: skip
def start(
    name: str,
    address: str | None,
    data_dir: str | None,
    config: dict[str, Any],
    labels: tuple[str, ...],
) -> None:
    """Start a cluster, or attach to the one that runs.

    On a Ray that runs already it deploys and returns. Without one it starts a local Ray and stays
    in the foreground until Ctrl-C; data stays. The next start on the same directory has everything
    again.
    """
    nodes = _labels(labels)
    with waiting(f"starting cluster {name!r}"):
        started = ray_stream.start(
            name=name, address=address, data_dir=data_dir, nodes=nodes, config=config or None
        )
    ending = _Ending()
    try:
        with started as cluster:
            if not cluster.embedded:
                click.echo(_running(cluster))
                return
            with _ending_on_signals(ending):
                click.echo(f"{_running(cluster)}; Ctrl-C stops it, and data stays")
                _wait(cluster, ending)
            note("stopping")
    except RayNotRunningError as gone:
        if ending.number is None:
            raise
        note(str(gone))
        _end_by(ending.number)


def _labels(pairs: tuple[str, ...]) -> dict[str, str] | None:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--node-label")
        labels[key] = value
    return labels or None


def _running(cluster: "Cluster") -> str:
    return f"cluster {cluster.name!r} runs on the Ray at {cluster.address}"


class _Ending:
    """Whether a signal ends the foreground cluster, and which."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.number: int | None = None


@contextmanager
def _ending_on_signals(ending: _Ending) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a foreground cluster in order; a second one interrupts that."""
    before: dict[int, Any] = {}

    def end(number: int, _: object) -> None:
        ending.number = number
        ending.begun.set()
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _end_by(number: int) -> NoReturn:
    """End as the signal ends a process: its sender sees that, and Ray's exit hooks wait for none.

    They would wait for a Ray that is gone.
    """
    sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    raise AssertionError(f"signal {number} ends a process")


def _wait(cluster: "Cluster", ending: _Ending) -> None:
    embedded = import_module("ray_stream.cluster.embedded")
    inspection = import_module("ray_stream.cluster.inspection")
    while not ending.begun.wait(LOOK_S):
        if embedded.unless_it_ends(lambda: inspection.is_stopped(cluster.name)):
            note(f"cluster {cluster.name!r} was stopped")
            return


@click.command()
@cluster_options
@json_option
@click.pass_context
def status(
    ctx: click.Context, name: str, address: str | None, data_dir: str | None, as_json: bool
) -> None:
    """Show brokers, actors, topics, and partitions that are not served.

    Exits with 1 when a broker is away or a partition is not served.
    """
    inspection = import_module("ray_stream.cluster.inspection")
    state: dict[str, Any]
    with Target(name, address, data_dir).connect() as cluster:
        metadata = cluster.metadata()
        actors = inspection.partition_actors(cluster)
        state = {
            "name": cluster.name,
            "cluster_id": cluster.cluster_id,
            "address": cluster.address,
            "controller_epoch": metadata.controller_epoch,
            "brokers": [_broker(one) for one in metadata.brokers],
            "partition_actors": [
                {
                    "actor": one.host,
                    "node": one.node_id,
                    "pid": one.pid,
                    "niceness": one.niceness,
                    "partitions": len(one.served),
                }
                for one in actors
            ],
            "topics": [
                _topic(one) for one in metadata.topics if not one.name.startswith(INTERNAL_PREFIX)
            ],
            "groups": _groups(cluster),
            "not_served": _not_served(metadata.topics),
        }
    if as_json:
        print_json(state)
    else:
        _print_status(state)
    if state["not_served"] or not all(one["alive"] for one in state["brokers"]):
        ctx.exit(FAILED)


def _broker(one: "BrokerMetadata") -> dict[str, Any]:
    return {
        "broker": one.broker_id,
        "alive": one.alive,
        "node": one.node_id,
        "host": one.host_id,
        "directories": list(one.directories),
    }


def _topic(one: "TopicMetadata") -> dict[str, Any]:
    return {
        "topic": one.name,
        "partitions": len(one.partitions),
        "served": sum(partition.leader >= 0 for partition in one.partitions),
        "durability": one.config.durability,
    }


def _groups(cluster: "Cluster") -> list[dict[str, Any]]:
    """Groups and their lag; none while nothing coordinates them, which `not_served` tells."""
    try:
        return [summary(one) for one in cluster.describe_groups(timeout=GROUPS_S)]
    except TimeoutExpiredError as error:
        note(f"groups are left out: {error}")
        return []


def _not_served(topics: list["TopicMetadata"]) -> list[dict[str, Any]]:
    return [
        {"topic": one.name, "partition": partition.partition, "reason": partition.offline_reason}
        for one in topics
        for partition in one.partitions
        if partition.leader < 0
    ]


def _print_status(state: dict[str, Any]) -> None:
    click.echo(
        f"cluster {state['name']!r} ({state['cluster_id']}) on the Ray at {state['address']}, "
        f"controller epoch {state['controller_epoch']}"
    )
    for title, key in (
        ("BROKERS", "brokers"),
        ("PARTITION ACTORS", "partition_actors"),
        ("TOPICS", "topics"),
        ("GROUPS", "groups"),
        ("NOT SERVED", "not_served"),
    ):
        rows = state[key]
        if rows:
            click.echo()
            print_table(
                list(rows[0]), [[_cell(*cell) for cell in row.items()] for row in rows], title
            )
    if not state["topics"]:
        click.echo("\nno topics yet")


def _cell(column: str, value: object) -> object:
    if column == "actor":  # its cluster and node stand beside it
        return str(value).rpartition("/")[2]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list) else value


@click.command()
@cluster_options
def stop(name: str, address: str | None, data_dir: str | None) -> None:
    """Stop a cluster: its actors end, logs closed first. Data stays, and so does Ray."""
    with (
        waiting(f"stopping cluster {name!r}"),
        Target(name, address, data_dir).connect() as cluster,
    ):
        cluster.shutdown()
    click.echo(f"cluster {name!r} stopped; its data stays")
