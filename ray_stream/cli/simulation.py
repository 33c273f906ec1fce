"""`sim`: the seeded simulator, without Ray.

Owns: which seeds run, and the line that replays a failure. Refuses: what is simulated and checked
(`testing.simulation`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

import click

from ray_stream.cli.application import FAILED
from ray_stream.cli.options import debug_option
from ray_stream.cli.output import note, progress

if TYPE_CHECKING:
    from ray_stream.testing.simulation import Report


def _number(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A seed, also as it is printed: 0x5eed."""
    if text is None:
        return None
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number") from None


@click.command()
@click.option("--seed", metavar="N", callback=_number, help="Run this one; 0x… is understood.")
@click.option("--seeds", type=click.IntRange(min=1), help="Run the seeds from 0 up to so many.")
@click.option("--trace", is_flag=True, help="Print every event of the one seed.")
@debug_option
@click.pass_context
def sim(ctx: click.Context, seed: int | None, seeds: int | None, trace: bool) -> None:
    """Run the seeded simulator: real machines, a network that errs, disks that forget.

    Exits with 1 when a promise was broken, and prints the line that runs that seed again.
    """
    if (seed is None) == (seeds is None):
        raise click.UsageError("give --seed N, or --seeds N")
    if trace and seed is None:
        raise click.UsageError("--trace is for one --seed")
    simulation = import_module("ray_stream.testing.simulation")
    chosen = [seed] if seed is not None else range(seeds or 0)
    failed = 0
    with progress(shown=seed is None) as shown:
        task = shown.add_task("simulating", total=len(chosen))
        for number in chosen:
            report = simulation.run(number, sink=click.echo if trace else None)
            if seed is not None and report.passed:
                click.echo(str(report))
            if not report.passed:
                failed += 1
                _tell(report)
            shown.advance(task)
    note(f"{len(chosen) - failed} of {len(chosen)} seeds kept every promise")
    if failed:
        ctx.exit(FAILED)


def _tell(report: "Report") -> None:
    for line in report.last_lines:
        click.echo(line)
    click.echo(str(report))
    for violation in report.violations[1:]:
        click.echo(f"  also: {violation}")
    click.echo(f"again: ray-stream sim --seed {report.seed}")
