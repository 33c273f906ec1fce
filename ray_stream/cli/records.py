"""`produce` and `consume`: lines in, records out.

Owns: the two text formats, and where a person may start to read. Refuses: options of producers and
consumers (`config` checks those).
"""

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ray_stream.cli.group import place
from ray_stream.cli.options import Target, cluster_options, config_option
from ray_stream.cli.output import note, progress
from ray_stream.errors import RayStreamError
from ray_stream.types import Record, TopicPartition

if TYPE_CHECKING:
    from ray_stream.client.consumer import Consumer
    from ray_stream.cluster.handle import Cluster

POLL_S = 1.0
LOT = 500


@click.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option(
    "--key-separator", metavar="TEXT", help="What stands in front of it is the key of a line."
)
@click.option("--partition", type=click.IntRange(min=0), help="Send everything there.")
@config_option("An option of the producer, such as acks=1 or compression_type=zstd")
@cluster_options
def produce(
    topic_name: str,
    key_separator: str | None,
    partition: int | None,
    config: dict[str, Any],
    **target: Any,  # noqa: ANN401 - the fields of `Target`
) -> None:
    r"""Send each line of standard input as a record, without its line end.

    \b
    ray-stream produce flights < flights.jsonl
    printf 'UA:delayed\nAA:landed\n' | ray-stream produce states --key-separator :

    Returns when every record is acknowledged, and says on standard error how many there were.
    """
    if key_separator == "":
        raise click.BadParameter("an empty text separates nothing", param_hint="--key-separator")
    separator = os.fsencode(key_separator) if key_separator else None
    source, number = sys.stdin.buffer, 0
    with (
        Target(**target).connect() as cluster,
        cluster.producer(**config) as producer,
        _progress_over(source) as advance,
    ):
        for number, line in enumerate(source, start=1):
            key, value = _split(line.removesuffix(b"\n"), separator, number)
            try:
                producer.send(topic_name, value, key, partition=partition)
            except RayStreamError as error:
                error.add_note(f"this was line {number}, which was not sent")
                raise
            advance(len(line))
    note(f"{number} records acknowledged in topic {topic_name!r}")


def _split(line: bytes, separator: bytes | None, number: int) -> tuple[bytes | None, bytes]:
    """Key and value of a line."""
    if separator is None:
        return None, line
    key, found, value = line.partition(separator)
    if not found:
        raise click.ClickException(
            f"line {number} has no key separator {os.fsdecode(separator)!r}; "
            "the lines before it were sent"
        )
    return key, value


@contextmanager
def _progress_over(source: BinaryIO) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of a file; nothing where a person types, or a pipe has no length."""
    size = os.fstat(source.fileno()).st_size if _is_real(source) else 0
    with progress(shown=size > 0, speed=True) as shown:
        task = shown.add_task("sending", total=size or None)
        yield lambda length: shown.advance(task, length)


def _is_real(source: BinaryIO) -> bool:
    try:
        source.fileno()
    except OSError:
        return False
    return not source.isatty()


@click.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option(
    "--from", "start", default="latest", show_default=True, metavar="PLACE",
    help="earliest, latest, an offset, or a time such as 2026-01-31T09:00, local or with a zone.",
)  # fmt: skip
@click.option(
    "--partition", "partitions", type=click.IntRange(min=0), multiple=True,
    help="Only this partition; may be repeated.",
)  # fmt: skip
@click.option("--max", "maximum", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--until", type=click.Choice(["end"]), help="End where the topic ended at the start.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="text: the value of a record is a line. json: a record is a JSON object.",
)  # fmt: skip
@click.option("--key-separator", metavar="TEXT", help="Print the key and this before the value.")
@click.option(
    "--group", metavar="NAME",
    help="Share the partitions with whoever consumes in that group, and go on where it stopped.",
)  # fmt: skip
@config_option("An option of the consumer, such as isolation_level=read_uncommitted")
@cluster_options
def consume(
    topic_name: str,
    start: str,
    partitions: tuple[int, ...],
    maximum: int | None,
    until: str | None,
    form: str,
    key_separator: str | None,
    group: str | None,
    config: dict[str, Any],
    **target: Any,  # noqa: ANN401 - the fields of `Target`
) -> None:
    """Print records as they arrive, until Ctrl-C, --max or --until.

    JSON has bytes that are no UTF-8 under key_base64, value_base64.
    """
    where = place(start, "--from")
    separator = os.fsencode(key_separator) if key_separator else b""
    options = {"until": until, **config} if until else config
    if group is not None:
        _check_group(where, partitions)
        # What was printed is committed, and nothing else.
        options = {"group": group, "enable_auto_commit": False, **options}
    with Target(**target).connect() as cluster, _consumer(
        cluster, topic_name, where, partitions, options
    ) as consumer:  # fmt: skip
        left = sys.maxsize if maximum is None else maximum
        for records in _arriving(consumer, left, bounded=until is not None):
            for record in records:
                line = _as_json(record) if form == "json" else _as_text(record, separator)
                sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            if group is not None and records:
                consumer.commit()


def _check_group(where: Any, partitions: tuple[int, ...]) -> None:  # noqa: ANN401 - any place
    if partitions:
        raise click.UsageError("--partition is not for a --group, which gives out partitions")
    if not isinstance(where, str):
        raise click.UsageError(
            "--from takes earliest or latest in a --group, for partitions that it has not read "
            "yet: `ray-stream group reset-offsets` moves it elsewhere"
        )


def _arriving(consumer: "Consumer", left: int, *, bounded: bool) -> Iterator[list[Record]]:
    """Records as they come, so many; each lot is shown before the next is waited for."""
    if not bounded:
        while left > 0:
            lot = consumer.poll(min(LOT, left), POLL_S)
            left -= len(lot)
            yield lot
        return
    records = islice(consumer, left)
    while lot := list(islice(records, LOT)):
        yield lot


def _consumer(
    cluster: "Cluster",
    topic: str,
    where: Any,  # noqa: ANN401 - a `StartPosition`
    partitions: tuple[int, ...],
    options: dict[str, Any],
) -> "Consumer":
    if isinstance(where, str) and not partitions:
        return cluster.consumer(topic, **{"auto_offset_reset": where, **options})
    numbers = partitions or [one.partition for one in cluster.describe_topic(topic).partitions]
    consumer = cluster.consumer(**options)
    consumer.assign([TopicPartition(topic, number) for number in numbers], start=where)
    return consumer


def _as_text(record: Record, separator: bytes) -> bytes:
    value: bytes = record.value or b""
    return (record.key or b"") + separator + value if separator else value


def _as_json(record: Record) -> bytes:
    headers = [[name, _plain(value)] for name, value in record.headers]
    content: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "timestamp_type": int(record.timestamp_type),
        **_field("key", record.key),
        **_field("value", record.value),
    }
    if headers:
        content["headers"] = headers
    return json.dumps(content, ensure_ascii=False).encode()


def _field(name: str, value: bytes | None) -> dict[str, Any]:
    plain = _plain(value)
    return {f"{name}_base64": plain["base64"]} if isinstance(plain, dict) else {name: plain}


def _plain(value: bytes | None) -> Any:  # noqa: ANN401 - anything JSON takes
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
