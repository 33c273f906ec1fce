"""`sim`: the seeded simulator, without Ray.

Owns: which seeds run, and the line that replays a failure. Refuses: what is simulated and checked
(`testing.simulation`).
"""

from importlib import import_module

import click

from ray_stream.cli.application import FAILED
from ray_stream.cli.options import debug_option
from ray_stream.cli.output import note, progress


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
@debug_option
@click.pass_context
def sim(ctx: click.Context, seed: int | None, seeds: int | None) -> None:
    """Run the seeded simulator: real machines, a network that errs, a disk that forgets.

    Exits with 1 when an invariant did not hold, and prints the line that runs that seed again.
    """
    if (seed is None) == (seeds is None):
        raise click.UsageError("give --seed N, or --seeds N")
    simulation = import_module("ray_stream.testing.simulation")
    chosen = [seed] if seed is not None else range(seeds or 0)
    failed = 0
    with progress(shown=seed is None) as shown:
        task = shown.add_task("simulating", total=len(chosen))
        for number in chosen:
            report = simulation.run(number)
            if not report.ok or seed is not None:
                click.echo(str(report))
            if not report.ok:
                failed += 1
                click.echo(f"ray-stream sim --seed {number}")
            shown.advance(task)
    note(f"{len(chosen) - failed} of {len(chosen)} seeds hold")
    if failed:
        ctx.exit(FAILED)
