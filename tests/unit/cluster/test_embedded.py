"""A local Ray of our own: what keeps it from starting, and what is done when it is gone."""

import os
import threading
import time
from pathlib import Path

import pytest

from ray_stream.cluster import embedded
from ray_stream.cluster.handle import Cluster
from ray_stream.errors import RayNotRunningError, RayStartError


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_named_with_a_way_out(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(one, raising=False)
    long = tmp_path / ("d" * 60) / ("e" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv(variable, str(long))
    with pytest.raises(RayStartError) as raised:
        embedded.start_local_ray()
    said = str(raised.value)
    assert f"{variable}={str(long)!r}" in said
    assert "RAY_TMPDIR=/tmp" in said
    assert "\n" not in said
    assert list(long.iterdir()) == []


def test_the_longest_directory_that_is_let_through_gives_sockets_of_107_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = f"ray/session_2026-12-31_23-59-59_123456_{os.getpid()}/sockets/plasma_store"
    longest = "/" + "d" * (107 - len(session) - 2)
    assert len(f"{longest}/{session}") == 107
    monkeypatch.setenv("RAY_TMPDIR", longest)
    embedded.check_temporary_directory()
    for longer in (longest + "d", longest[:-1] + "é"):
        monkeypatch.setenv("RAY_TMPDIR", longer)
        with pytest.raises(RayStartError, match="108 bytes"):
            embedded.check_temporary_directory()


def test_a_call_that_waits_for_a_ray_that_is_gone_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, gone = threading.Event(), threading.Event()
    monkeypatch.setattr(embedded, "has_ended", asked.is_set)

    def call() -> None:
        asked.set()
        gone.wait(60)

    begin = time.monotonic()
    with pytest.raises(RayNotRunningError, match="acknowledged is on disk"):
        embedded.unless_it_ends(call)
    assert time.monotonic() - begin < 10
    gone.set()


def test_an_error_of_a_ray_that_is_gone_is_told_as_what_it_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = threading.Event()
    monkeypatch.setattr(embedded, "has_ended", failed.is_set)

    def call() -> None:
        failed.set()
        raise ConnectionError("rpc")

    with pytest.raises(RayNotRunningError):
        embedded.unless_it_ends(call)


def test_a_call_to_a_living_ray_gives_its_answer_or_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "has_ended", lambda: False)
    assert embedded.unless_it_ends(lambda: None) is None
    assert embedded.unless_it_ends(lambda: [1]) == [1]
    with pytest.raises(ZeroDivisionError):
        embedded.unless_it_ends(lambda: 1 // 0)


def test_a_handle_whose_ray_is_gone_says_so_and_hides_no_other_error() -> None:
    def gone() -> None:
        raise RayNotRunningError("it ended")

    with pytest.raises(RayNotRunningError, match="it ended"):
        Cluster("c", "id", "127.0.0.1:1", on_exit=gone).__exit__(None, None, None)
    mine = KeyboardInterrupt()
    Cluster("c", "id", "127.0.0.1:1", on_exit=gone).__exit__(KeyboardInterrupt, mine, None)
    assert mine.__notes__ == ["it ended"]
