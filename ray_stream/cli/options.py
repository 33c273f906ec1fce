"""Options that many commands share, and what they mean.

Owns: `--name`, `--address`, `--data-dir`, `--config`, `--json`, `--debug`. Refuses: values of
settings (`config` checks those).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

import ray_stream

if TYPE_CHECKING:
    from ray_stream.cluster.handle import Cluster

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster is meant."""

    name: str
    address: str | None
    data_dir: str | None

    def connect(self) -> "Cluster":
        """A handle on it; `ClusterNotFoundError` says how to start one."""
        return ray_stream.connect(name=self.name, address=self.address, data_dir=self.data_dir)


def cluster_options(command: CommandT) -> CommandT:
    """Add `--name`, `--address`, `--data-dir` and `--debug`; `Target.of` takes the first three."""
    for option in (
        debug_option,
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False),
            help="Where its data is, on every node. Default: $RAY_STREAM_DATA_DIR, else a "
            "directory of this user.",
        ),
        click.option("--address", help="host:port of its Ray. Default: $RAY_ADDRESS."),
        click.option("--name", default="default", show_default=True, help="Name of the cluster."),
    ):
        command = option(command)
    return command


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.obj.debug = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug,
    help="Show the traceback of an error.",
)  # fmt: skip

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")


def _parsed(_: click.Context, __: click.Parameter, given: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
        settings[key] = _value(value)
    return settings


def _value(text: str) -> Any:  # noqa: ANN401 - whatever the setting takes
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return int(text)
    except ValueError:
        return text


def config_option(what: str) -> Callable[[CommandT], CommandT]:
    """Add `--config KEY=VALUE`, which may be repeated."""
    return click.option(
        "--config", "config", multiple=True, metavar="KEY=VALUE", callback=_parsed,
        help=f"{what}; may be repeated.",
    )  # fmt: skip
