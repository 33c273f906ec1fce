"""The root of the command line: which commands there are, and how each of them ends.

Owns: loading a command only when it is called (so that `--help` never waits for Ray), exit statuses
(0 done, 1 failed, 2 usage, 130 Ctrl-C), and errors on one line. Refuses: what commands do.
"""

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, NoReturn

import click

from ray_stream.errors import (
    InvalidArgumentError,
    InvalidConfigError,
    InvalidGroupIdError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    RayStreamError,
    UnknownOptionError,
)

FAILED = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT

_USAGE_ERRORS = (
    InvalidGroupIdError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    UnknownOptionError,
)

COMMANDS: Mapping[str, tuple[str, str]] = {
    "start": ("cluster:start", "Start a cluster: on a running Ray, or on a local one."),
    "status": ("cluster:status", "Show brokers, topics, and partitions that are not served."),
    "stop": ("cluster:stop", "Stop a cluster's actors; data stays, and so does Ray."),
    "topic": ("topic:topic", "Create, list, describe, alter and delete topics."),
    "produce": ("records:produce", "Send each line of standard input as a record."),
    "consume": ("records:consume", "Print records as they arrive."),
    "group": ("group:group", "List, describe, reset and delete consumer groups."),
    "verify": ("disk:verify", "Check every byte of a data directory, offline."),
    "repair": ("disk:repair", "Bring partitions back that went offline after a failed sync."),
    "bench": ("benchmark:bench", "Measure how fast a cluster is."),
    "sim": ("simulation:sim", "Run the seeded simulator."),
    "demo": ("demonstration:demo", "Write, kill, restart and verify on real data."),
}
"""Every command: where it is (`module:attribute`), and one line about it."""


@dataclass(slots=True)
class Switches:
    """What applies to a whole invocation."""

    debug: bool = False


class Application(click.Group):
    """The root group. Its `main` never returns, and never shows a traceback unasked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a user's day."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; only what was called is imported."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"ray_stream.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without loading them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the command; a reader that went away (`| head`) ends it quietly."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered has nowhere to go; the interpreter must not try again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(128 + signal.SIGPIPE)
        return value

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> NoReturn:  # noqa: ANN401
        """Run one command line and exit with its status."""
        switches = Switches()
        options["standalone_mode"] = False
        try:
            status = super().main(args, *more, obj=switches, **options)
        except click.exceptions.Abort as error:
            status = _interrupted(error)
        except click.ClickException as error:
            status = _refused(error)
        except Exception as error:  # noqa: BLE001 - the edge: told in one line, shown on demand
            status = _failed(error, debug=switches.debug)
        sys.exit(status if isinstance(status, int) else 0)


def _interrupted(error: click.exceptions.Abort) -> int:
    if not isinstance(error.__cause__, KeyboardInterrupt):
        _say("stopped at the end of input")
        return FAILED
    if notes := getattr(error.__cause__, "__notes__", []):
        _say(f"interrupted: {'; '.join(notes)}")
    return INTERRUPTED


def _refused(error: click.ClickException) -> int:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    hint = f" (see {command} --help)" if command else ""
    _say(f"{error.format_message()}{hint}")
    return error.exit_code


def _failed(error: Exception, *, debug: bool) -> int:
    text = "; ".join([str(error), *getattr(error, "__notes__", [])])
    if debug:
        traceback.print_exception(error)
    elif isinstance(error, RayStreamError | OSError):
        _say(text)
    else:
        _say(f"{type(error).__name__}: {text} (--debug shows where)")
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAILED


def _say(text: str) -> None:
    click.echo(f"ray-stream: {' '.join(text.split())}", err=True)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"ray-stream {metadata.version('ray-stream')}")
        ctx.exit()


@click.group(
    cls=Application,
    name="ray-stream",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def application(switches: Switches, debug: bool) -> None:
    """A durable, ordered, partitioned log inside a Ray cluster."""
    switches.debug = switches.debug or debug


def main() -> NoReturn:
    """Entry point of the script `ray-stream`."""
    application.main(prog_name="ray-stream")
