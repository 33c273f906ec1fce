"""Which processes may be ended for the lock that they hold, and which never."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ray_stream.actors.holders import end_orphan, start_time
from ray_stream.boot import boot_id
from ray_stream.log.locks import Holder

HERE = "127.0.0.1:6379"
NAME = "cluster/controller"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that waits until it is ended."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def holder_of(pid: int, raylet_pid: int, **changes: str | int) -> Holder:
    values: dict[str, Any] = {
        "pid": pid,
        "start_time": start_time(pid),
        "boot_id": boot_id(),
        "raylet_pid": raylet_pid,
        "raylet_start_time": start_time(raylet_pid),
        "ray_address": HERE,
        "name": NAME,
    }
    return Holder(**{**values, **changes})


def me(name: str = "cluster/other", **changes: str | int) -> Holder:
    return holder_of(os.getpid(), os.getppid(), name=name, **changes)


def test_a_holder_of_another_living_ray_is_never_ended(process: subprocess.Popen[bytes]) -> None:
    other = holder_of(process.pid, os.getpid(), ray_address="127.0.0.1:7777")
    assert not end_orphan(other, me(NAME))
    assert process.poll() is None


def test_a_holder_whose_raylet_is_gone_is_ended(process: subprocess.Popen[bytes]) -> None:
    assert end_orphan(holder_of(process.pid, os.getpid(), raylet_start_time=1), me())
    assert process.wait(10) == -9


def test_a_holder_whose_raylet_ended_and_was_not_reaped_is_ended(
    process: subprocess.Popen[bytes],
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        holder = holder_of(process.pid, raylet.pid)
        raylet.kill()
        os.waitid(os.P_PID, raylet.pid, os.WEXITED | os.WNOWAIT)
        assert end_orphan(holder, me())
    assert process.wait(10) == -9


def test_an_earlier_process_of_ones_own_name_in_the_same_ray_is_ended(
    process: subprocess.Popen[bytes],
) -> None:
    assert end_orphan(holder_of(process.pid, os.getpid()), me(NAME))
    assert process.wait(10) == -9


def test_a_later_process_with_the_same_id_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    assert not end_orphan(holder_of(process.pid, os.getpid(), start_time=1), me(NAME))
    assert process.poll() is None


@pytest.mark.parametrize(("theirs", "mine"), [("", ""), ("", "a"), ("a", ""), ("a", "b")])
def test_process_ids_of_another_boot_or_of_one_that_nobody_knows_end_nobody(
    process: subprocess.Popen[bytes], theirs: str, mine: str
) -> None:
    holder = holder_of(process.pid, os.getpid(), raylet_start_time=1, boot_id=theirs)
    assert not end_orphan(holder, me(NAME, boot_id=mine))
    assert process.poll() is None


def test_nobody_ends_itself() -> None:
    assert not end_orphan(holder_of(os.getpid(), os.getppid(), raylet_start_time=1), me())
