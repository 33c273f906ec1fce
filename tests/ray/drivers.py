"""Drivers in processes of their own, and the processes behind them: found by id, never by name.

A driver's script talks in lines of JSON over a pipe, so that what it prints is all its own.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

CLEARED = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_STREAM_DATA_DIR", "RAY_worker_niceness")
"""What another user's shell would not have; Ray sets the second one in whoever starts a Ray."""
PATIENCE_S = 90.0
ENOUGH = 20_000
"""Characters of a driver's complaints that an assertion quotes."""

PRELUDE = """
import json, os, sys
import ray_stream
from ray_stream import errors

def tell(*values):
    os.write({out}, json.dumps(values).encode() + b"\\n")

def hear():
    line = b""
    while not line.endswith(b"\\n"):
        got = os.read({into}, 1)
        if not got:
            raise SystemExit("the test is gone")
        line += got
    return json.loads(line)

def refusal(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None
"""


class Driver:
    """A script that runs until it ends, or until the block is left: then it is killed."""

    def __init__(self, script: str, *, home: Path | None = None, **environment: str) -> None:
        """Args: environment: beside this process's own; home: of Ray's files, short."""
        variables = {key: value for key, value in os.environ.items() if key not in CLEARED}
        self._files = Path(tempfile.mkdtemp(prefix="rs-d-", dir="/tmp"))
        variables |= {"RAY_TMPDIR": str(home or self._files), **environment}
        self._heard, out = os.pipe()
        into, self._say = os.pipe()
        source = PRELUDE.format(out=out, into=into) + textwrap.dedent(script)
        self.stdout_path, self.stderr_path = self._files / "stdout", self._files / "stderr"
        with self.stdout_path.open("wb") as stdout, self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", source],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(out, into),
                env=variables,
            )
        os.close(out)
        os.close(into)
        self._rest = b""

    @property
    def pid(self) -> int:
        """Of the driver."""
        return self.process.pid

    def hear(self, timeout: float = PATIENCE_S) -> Any:  # noqa: ANN401 - whatever it told
        """The next thing that the script told; a list, or the only value."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._heard], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._heard, 65536) if ready else b""
            if not chunk:
                why = "ended" if ready else f"said nothing for {timeout:g} s"
                raise AssertionError(f"the driver {why}:\n{self.stderr()[-ENOUGH:]}")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        values = json.loads(line)
        return values[0] if len(values) == 1 else values

    def say(self, value: Any = None) -> None:  # noqa: ANN401 - whatever the script hears
        """Let the script go on."""
        os.write(self._say, json.dumps(value).encode() + b"\n")

    def finish(self, timeout: float = PATIENCE_S) -> None:
        """Wait for a clean end."""
        status = self.process.wait(timeout)
        assert status == 0, f"status {status}:\n{self.stderr()[-ENOUGH:]}"

    def stdout(self) -> str:
        """What it printed so far."""
        return self.stdout_path.read_text(encoding="utf-8")

    def stderr(self) -> str:
        """What it complained about so far."""
        return self.stderr_path.read_text(encoding="utf-8")

    def kill_everything(self) -> list[int]:
        """`kill -9` the driver and all that it started, at once; returns the process ids."""
        pids = family(self.pid)
        kill(pids)
        self.process.wait(PATIENCE_S)
        return pids

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.kill_everything()
        os.close(self._heard)
        os.close(self._say)
        shutil.rmtree(self._files, ignore_errors=True)


def run(script: str, *, timeout: float = PATIENCE_S, **options: Any) -> Any:  # noqa: ANN401 - heard
    """Run a script to its clean end; returns the last thing that it told."""
    with Driver(script, **options) as driver:
        heard = driver.hear(timeout)
        driver.finish()
        return heard


def family(pid: int) -> list[int]:
    """A process and all its descendants, oldest first."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8")
                yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def kill(pids: list[int]) -> None:
    """`kill -9` each; stopped first, so that none sees another one's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely unreaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_ended(pids: list[int], timeout: float = 20.0) -> None:
    """Wait until none of them runs."""
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)
