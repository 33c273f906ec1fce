"""An act in a process of its own: Ray's noise goes to a log, events come back through a pipe.

Owns: starting the process, its pipe, its end. Refuses: what the events mean.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ray_stream.demo.events import DECODER, Event, Failed

SILENCE_S = 300.0
"""An act without an event for so long hangs."""
END_S = 60.0
GRACE_S = 20.0
CLEARED = ("RAY_ADDRESS", "RAY_STREAM_DATA_DIR")
"""The demo has a Ray and a data directory of its own, whatever else is set."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is played."""

    name: str
    """As `acts` knows it."""
    data_dir: Path
    flights: int | None = None
    """Only the first so many; None: all."""


def run_act(act: Act, log: Path) -> Generator[Event, None, None]:
    """Run one act; yields its events. A process that ends badly yields `Failed`.

    Args:
        act: what to play.
        log: where its output goes; added to.
    """
    receiving, sending = os.pipe()
    environment = {key: value for key, value in os.environ.items() if key not in CLEARED}
    arguments = [act.name, str(act.data_dir), str(act.flights or 0), str(sending)]
    command = [sys.executable, "-m", "ray_stream.demo.acts", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(sending,),
            env=environment,
        )
    os.close(sending)
    try:
        yield from _events(receiving, act.name)
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        yield Failed(f"the act {act.name!r} did not end")
    finally:
        os.close(receiving)
        _end(process)
    if process.returncode:
        yield Failed(f"the process of the act {act.name!r} ended with status {process.returncode}")


def _events(receiving: int, act: str) -> Iterator[Event]:
    rest = b""
    heard = time.monotonic()
    while True:
        ready, _, _ = select.select([receiving], [], [], 1.0)
        if not ready:
            if time.monotonic() - heard > SILENCE_S:
                yield Failed(f"the act {act!r} was silent for {SILENCE_S:.0f} s")
                return
            continue
        chunk = os.read(receiving, 65536)
        if not chunk:
            return
        heard = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield DECODER.decode(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a child that lost its reader, or got Ctrl-C itself, stop its Ray; then insist."""
    steps: tuple[Callable[[], object], ...] = (process.poll, process.terminate, process.kill)
    for insist in steps:
        insist()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


class Speaker:
    """The child's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        """Args: descriptor: as it was passed."""
        self._descriptor = descriptor

    def __call__(self, event: Event) -> None:
        """Tell the parent; `BrokenPipeError` when it is gone, which ends the act."""
        os.write(self._descriptor, msgspec.json.encode(event) + b"\n")
