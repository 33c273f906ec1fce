"""`topic`: create, list, describe, alter and delete topics.

Owns: how topics are shown. Refuses: which settings are valid (`config`).
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from ray_stream.cli.options import Target, cluster_options, config_option, json_option
from ray_stream.cli.output import print_json, print_table, waiting
from ray_stream.config import INTERNAL_PREFIX

if TYPE_CHECKING:
    from ray_stream.types import TopicDescription

_settings = config_option("A setting such as segment_bytes=67108864 or durability=replicated")
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS"
)


@click.group()
def topic() -> None:
    """Create, list, describe, alter and delete topics."""


@topic.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option("--partitions", type=int, default=1, show_default=True)
@click.option("--replication-factor", type=int, default=1, show_default=True)
@click.option("--exist-ok", is_flag=True, help="Accept an equal topic of that name.")
@click.option("--dedicated", is_flag=True, help="Give every partition an actor of its own.")
@_settings
@_timeout
@cluster_options
def create(
    topic_name: str,
    partitions: int,
    replication_factor: int,
    exist_ok: bool,
    dedicated: bool,
    config: dict[str, Any],
    timeout: float,
    **target: Any,  # noqa: ANN401 - the fields of `Target`
) -> None:
    """Make a topic; returns when every partition is served."""
    with waiting(f"making topic {topic_name!r}"), Target(**target).connect() as cluster:
        cluster.create_topic(
            topic_name,
            partitions,
            replication_factor,
            exist_ok=exist_ok,
            dedicated=dedicated,
            timeout=timeout,
            **config,
        )
    click.echo(f"topic {topic_name!r} is there")


@topic.command("list")
@json_option
@cluster_options
def list_topics(as_json: bool, **target: Any) -> None:  # noqa: ANN401 - the fields of `Target`
    """List all topics."""
    with Target(**target).connect() as cluster:
        topics = cluster.metadata().topics
    rows = [
        {
            "topic": one.name,
            "partitions": len(one.partitions),
            "replication_factor": one.replication_factor,
            "durability": one.config.durability,
        }
        for one in sorted(topics, key=lambda one: one.name)
        if not one.name.startswith(INTERNAL_PREFIX)
    ]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        click.echo("no topics yet")


@topic.command()
@click.argument("topic_name", metavar="TOPIC")
@json_option
@cluster_options
def describe(topic_name: str, as_json: bool, **target: Any) -> None:  # noqa: ANN401 - as above
    """Show a topic's settings, and where each partition is served."""
    with Target(**target).connect() as cluster:
        description = cluster.describe_topic(topic_name)
    if as_json:
        print_json(_plain(description))
        return
    click.echo(
        f"topic {description.name!r} ({description.topic_id}), {len(description.partitions)} "
        f"partitions, replication factor {description.replication_factor}"
    )
    click.echo(" ".join(f"{key}={value}" for key, value in sorted(description.config.items())))
    click.echo()
    rows = _plain(description)["partitions"]
    print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _plain(description: "TopicDescription") -> dict[str, Any]:
    return {
        "name": description.name,
        "topic_id": description.topic_id,
        "replication_factor": description.replication_factor,
        "dedicated": description.dedicated,
        "config": dict(description.config),
        "partitions": [
            {
                "partition": one.partition,
                "leader": one.leader,
                "leader_epoch": one.leader_epoch,
                "replicas": list(one.replicas),
                "isr": list(one.isr),
                "beginning_offset": one.beginning_offset,
                "end_offset": one.end_offset,
                "offline_reason": one.offline_reason,
            }
            for one in description.partitions
        ],
    }


def _cell(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


@topic.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option("--partitions", type=int, help="The new count; never below the present one.")
@_settings
@_timeout
@cluster_options
def alter(
    topic_name: str,
    partitions: int | None,
    config: dict[str, Any],
    timeout: float,
    **target: Any,  # noqa: ANN401 - the fields of `Target`
) -> None:
    """Give a topic more partitions, other settings, or both; returns when they hold."""
    if partitions is None and not config:
        raise click.UsageError("nothing to change: give --partitions or --config")
    with waiting(f"altering topic {topic_name!r}"), Target(**target).connect() as cluster:
        cluster.alter_topic(topic_name, partitions, timeout=timeout, **config)
    click.echo(f"topic {topic_name!r} is altered")


@topic.command()
@click.argument("topic_name", metavar="TOPIC")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_timeout
@cluster_options
def delete(
    topic_name: str,
    yes: bool,
    timeout: float,
    **target: Any,  # noqa: ANN401 - as above
) -> None:
    """Delete a topic with all its records, for good."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("deleting cannot be undone: give --yes")
        click.confirm(f"Delete topic {topic_name!r} with all its records, for good?", abort=True)
    with waiting(f"deleting topic {topic_name!r}"), Target(**target).connect() as cluster:
        cluster.delete_topic(topic_name, timeout=timeout)
    click.echo(f"topic {topic_name!r} is deleted")
