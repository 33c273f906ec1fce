"""`bench`: how fast a cluster is, by the cases of LinkedIn's benchmark of Kafka (2014).

Owns: which cases there are, the topic they run on and its end, and how figures are shown. Refuses:
other systems to compare with, and what a client process does (`benchmark_clients`).
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import click

from ray_stream.cli.options import Target, cluster_options, json_option
from ray_stream.cli.output import note, print_json, print_table, progress
from ray_stream.errors import RayStreamError

if TYPE_CHECKING:
    from ray_stream.cli.benchmark_clients import Job
    from ray_stream.cluster.handle import Cluster

CLIENTS = 3
TRIPS = 1_000
SETTLE = 10
"""The first 1/10 of the round trips is not counted: they start what the others find running."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured."""

    records: int
    record_bytes: int
    partitions: int
    durability: Literal["fsync", "replicated"]


@click.command()
@click.option(
    "--records", type=click.IntRange(min=CLIENTS), default=1_000_000, show_default=True,
    help="Records of each case.",
)  # fmt: skip
@click.option(
    "--record-bytes", type=click.IntRange(min=1, max=1_000_000), default=100, show_default=True,
    help="Size of each record's value.",
)  # fmt: skip
@click.option(
    "--partitions", type=click.IntRange(min=CLIENTS), default=6, show_default=True,
    help="Of the topic that is measured.",
)  # fmt: skip
@click.option(
    "--durability", type=click.Choice(["fsync", "replicated"]), default="fsync", show_default=True,
    help="What an acknowledgement stands for.",
)  # fmt: skip
@json_option
@cluster_options
def bench(
    records: int,
    record_bytes: int,
    partitions: int,
    durability: Literal["fsync", "replicated"],
    as_json: bool,
    **target: Any,  # noqa: ANN401 - the fields of `Target`
) -> None:
    r"""Measure throughput and latency of a running cluster, from this machine.

    \b
    ray-stream bench
    ray-stream bench --durability replicated --record-bytes 1000 --json

    It writes four times --records to a topic of its own, which it deletes at the end and when it is
    interrupted. Clients are processes of their own with default settings.
    """
    work = Work(records, record_bytes, partitions, durability)
    with Target(**target).connect() as cluster, _topic(cluster, work) as topic:
        rates, latency = _measured(cluster, topic, work)
    if as_json:
        print_json(
            {
                "records": records,
                "record_bytes": record_bytes,
                "partitions": partitions,
                "durability": durability,
                "cases": rates,
                "latency_us": latency,
            }
        )
        return
    print_table(
        ["case", "records/s", "MB/s"],
        [
            [one["case"], round(one["records_per_s"]), f"{one['mb_per_s']:.1f}".rjust(8)]
            for one in rates
        ],
        f"{records} records of {record_bytes} bytes a case, {partitions} partitions, {durability}",
    )
    times = ", ".join(f"{name} {value / 1000:.2f} ms" for name, value in latency.items())
    click.echo(f"\nlatency, one record in flight, linger_ms=0: {times}")


@contextmanager
def _topic(cluster: "Cluster", work: Work) -> Iterator[str]:
    """A topic that is there for as long as the block takes."""
    name = f"bench-{secrets.token_hex(4)}"
    try:
        cluster.create_topic(name, work.partitions, durability=work.durability)
        note(f"measuring on topic {name!r}, which is deleted at the end")
        yield name
    finally:
        try:
            if name in cluster.topics():
                cluster.delete_topic(name)
        except (RayStreamError, KeyboardInterrupt):
            note(f"topic {name!r} is left: `ray-stream topic delete {name} --yes` deletes it")
            raise


def _measured(
    cluster: "Cluster", topic: str, work: Work
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A rate for each case, and quantiles of the latency in microseconds."""
    clients = import_module("ray_stream.cli.benchmark_clients")
    chosen = _cases(clients.Job, topic, work)
    rates = []
    with (
        progress() as shown,
        clients.Clients(cluster.name, cluster.address, CLIENTS) as crew,
    ):
        task = shown.add_task("measuring", total=len(chosen) + 1)
        for name, jobs in chosen:
            shown.update(task, description=name)
            done = crew.at_once(jobs)
            seconds = max(one.ended for one in done) - min(one.begun for one in done)
            # Who writes and who reads the same records at once has moved them once.
            count = sum(one.records for one in done if one.kind == done[0].kind)
            rates.append(
                {
                    "case": name,
                    "records": count,
                    "seconds": seconds,
                    "records_per_s": count / seconds,
                    "mb_per_s": count * work.record_bytes / seconds / 1e6,
                }
            )
            shown.advance(task)
        shown.update(task, description="latency")
        (done,) = crew.at_once([clients.Job("round trips", topic, TRIPS, work.record_bytes, (0,))])
        shown.advance(task)
    times = sorted(done.times[TRIPS // SETTLE :])
    return rates, {name: times[int(len(times) * at)] * 1e6 for name, at in QUANTILES.items()}


def _cases(job: type["Job"], topic: str, work: Work) -> list[tuple[str, list["Job"]]]:
    """What clients do at once, case by case, in an order in which later ones find records."""
    every = tuple(range(work.partitions))
    size = work.record_bytes
    third = work.records // CLIENTS

    def one(kind: str, count: int = work.records, partitions: tuple[int, ...] = every) -> "Job":
        return job(kind, topic, count, size, partitions)

    return [
        ("one producer, send()", [one("send")]),
        ("one consumer, record by record", [one("read")]),
        ("one consumer, fetch() to Arrow", [one("fetch")]),
        (
            "three consumers, record by record",
            [one("read share", 0, every[number::CLIENTS]) for number in range(CLIENTS)],
        ),
        ("one producer, send_batch()", [one("send batches")]),
        ("three producers, send()", [one("send", third)] * CLIENTS),
        ("a producer and a consumer at once", [one("send"), one("follow")]),
    ]
