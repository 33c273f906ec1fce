"""`python -m ray_stream.demo`: options, directories, exit status.

Owns: where data and log go, and the last word. Refuses: the story (`acts`).
"""

import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from ray_stream.demo import flights
from ray_stream.demo.child import Act, run_act
from ray_stream.demo.events import Failed, Verified, Written
from ray_stream.demo.show import Stage, stage, summary

FAILED = 1
INTERRUPTED = 130


class ActFailedError(Exception):
    """An act ended without its result."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Leave the data directory, for `ray-stream verify`.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False),
    help="An empty directory for the data, which stays. Default: a temporary one.",
)  # fmt: skip
@click.option(
    "--flights",
    "count",
    type=click.IntRange(min=10_000),
    help="Only so many of them, for a quick look.",
)
def demo(keep: bool, data_dir: Path | None, count: int | None) -> None:
    """Write 336,776 flights while a process is killed, restart from disk, consume, verify.

    Everything runs on a local Ray of its own, which the demo starts and stops.
    """
    if flights.find() is None:
        _end("the flights are not installed: pip install 'ray-stream[demo]'", FAILED)
    if data_dir is not None and data_dir.exists() and any(data_dir.iterdir()):
        raise click.UsageError(f"{data_dir} is not empty: give a directory that is")
    directory = (data_dir or Path(tempfile.mkdtemp(prefix="ray-stream-demo-"))).absolute()
    keep = keep or data_dir is not None
    with tempfile.NamedTemporaryFile(
        prefix="ray-stream-demo-", suffix=".log", delete=False
    ) as made:
        log = Path(made.name)
    try:
        written, verified = _play(directory, log, count)
    except ActFailedError as error:
        _end(f"{error}; the log is {log}", FAILED)
    except KeyboardInterrupt:
        _end(f"interrupted; the log is {log}", INTERRUPTED)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    Console().print(summary(written, verified, directory if keep else None, log))
    if keep:
        click.echo(f"ray-stream verify {directory}")


def _play(directory: Path, log: Path, count: int | None) -> tuple[Written, Verified]:
    with stage(Console(stderr=True)) as shown:
        written = _act(Act("write", directory, count), log, shown)
        verified = _act(Act("verify", directory, count), log, shown)
    assert isinstance(written, Written)
    assert isinstance(verified, Verified)
    return written, verified


def _act(act: Act, log: Path, shown: Stage) -> Written | Verified:
    result = None
    with closing(run_act(act, log)) as events:
        for event in events:
            match event:
                case Failed():
                    raise ActFailedError(event.reason)
                case Written() | Verified():
                    result = event
                case _:
                    shown.show(event)
    if result is None:
        raise ActFailedError(f"the act {act.name!r} ended without a result")
    return result


def _end(text: str, status: int) -> NoReturn:
    click.echo(f"demo: {text}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(demo(prog_name="python -m ray_stream.demo"))
