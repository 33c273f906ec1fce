"""`demo`: hands over to `python -m ray_stream.demo`, which stands beside the command line.

Owns: the hand-over. Refuses: what the demo does.
"""

import subprocess
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Write, kill, restart and verify on real data."""
    ended = subprocess.run([sys.executable, "-m", "ray_stream.demo", *ctx.args], check=False)  # noqa: S603 - our own module
    ctx.exit(ended.returncode)
