"""`group`: list, describe, reset and delete consumer groups.

Owns: how groups are shown. Refuses: being a member (`consume --group`).
"""

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ray_stream.cli.options import Target, cluster_options, json_option
from ray_stream.cli.output import print_json, print_table, waiting

if TYPE_CHECKING:
    from ray_stream.types import GroupDescription


def place(text: str, option: str) -> Any:  # noqa: ANN401 - a `StartPosition`, by what was typed
    """Where to start, as a person types it: earliest, latest, an offset, a time."""
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither earliest, latest, an offset, nor a time such as 2026-01-31T09:00",
            param_hint=option,
        ) from None


@click.group()
def group() -> None:
    """List, describe, reset and delete consumer groups."""


@group.command("list")
@json_option
@cluster_options
def list_groups(as_json: bool, **target: Any) -> None:  # noqa: ANN401 - the fields of `Target`
    """List all groups, with their lag."""
    with Target(**target).connect() as cluster:
        rows = [summary(one) for one in cluster.describe_groups()]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    else:
        click.echo("no groups yet")


def summary(one: "GroupDescription") -> dict[str, Any]:
    """A group in one line."""
    return {
        "group": one.name,
        "state": one.state,
        "members": len(one.members),
        "partitions": len(one.partitions),
        "lag": sum(one.lag.values()) if len(one.lag) == len(one.partitions) else None,
    }


@group.command()
@click.argument("group_name", metavar="GROUP")
@json_option
@cluster_options
def describe(group_name: str, as_json: bool, **target: Any) -> None:  # noqa: ANN401 - as above
    """Show a group's members, and how far each partition is behind."""
    with Target(**target).connect() as cluster:
        description = cluster.describe_group(group_name)
    plain = _plain(description)
    if as_json:
        print_json(plain)
        return
    click.echo(
        f"group {description.name!r} is {description.state}, epoch {description.epoch}, "
        f"assignor {description.assignor or 'not chosen yet'}"
    )
    for note in description.notes:
        click.echo(f"note: {note}")
    for title, rows in (("MEMBERS", plain["members"]), ("PARTITIONS", plain["partitions"])):
        if rows:
            click.echo()
            cells = [[_cell(value) for value in row.values()] for row in rows]
            print_table(list(rows[0]), cells, title)


def _plain(description: "GroupDescription") -> dict[str, Any]:
    return {
        "group": description.name,
        "state": description.state,
        "epoch": description.epoch,
        "assignor": description.assignor,
        "notes": list(description.notes),
        "members": [
            {
                "member": one.member_id,
                "client": one.client_id,
                "instance": one.instance_id,
                "node": one.node_id,
                "rack": one.rack,
                "state": one.state,
                "epoch": one.epoch,
                "assignment": [f"{name.topic}-{name.partition}" for name in one.assignment],
            }
            for one in description.members
        ],
        "partitions": [
            {
                "topic": one.topic,
                "partition": one.partition,
                "committed": one.committed,
                "end": one.end_offset if one.end_offset >= 0 else None,
                "lag": one.lag,
                "member": one.member_id,
            }
            for one in description.partitions
        ],
    }


def _cell(value: object) -> object:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list) else value


@group.command("reset-offsets")
@click.argument("group_name", metavar="GROUP")
@click.argument("topic_name", metavar="TOPIC")
@click.option(
    "--to", "where", required=True,
    help="earliest, latest, an offset, or a time such as 2026-01-31T09:00.",
)  # fmt: skip
@click.option(
    "--partition", "partitions", type=click.IntRange(min=0), multiple=True,
    help="Only this partition; may be repeated.",
)  # fmt: skip
@json_option
@cluster_options
def reset_offsets(
    group_name: str,
    topic_name: str,
    where: str,
    partitions: tuple[int, ...],
    as_json: bool,
    **target: Any,  # noqa: ANN401 - as above
) -> None:
    """Let a group go on from somewhere else; refused while it has members."""
    to = place(where, "--to")
    with Target(**target).connect() as cluster:
        chosen = dict.fromkeys(partitions, to) if partitions else to
        offsets = cluster.reset_offsets(group_name, topic_name, chosen)
    rows = [
        {"topic": name.topic, "partition": name.partition, "offset": offset}
        for name, offset in sorted(offsets.items())
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(["topic", "partition", "offset"], [list(row.values()) for row in rows])


@group.command()
@click.argument("group_name", metavar="GROUP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_options
def delete(group_name: str, yes: bool, **target: Any) -> None:  # noqa: ANN401 - as above
    """Forget a group and its committed offsets; refused while it has members."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("deleting cannot be undone: give --yes")
        click.confirm(f"Delete group {group_name!r} with its committed offsets?", abort=True)
    with waiting(f"deleting group {group_name!r}"), Target(**target).connect() as cluster:
        cluster.delete_group(group_name)
    click.echo(f"group {group_name!r} is deleted")
