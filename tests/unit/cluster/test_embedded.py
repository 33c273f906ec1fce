"""What keeps a local Ray from starting is said before anything of it is made."""

import os
from pathlib import Path

import pytest

from ray_stream.cluster import embedded
from ray_stream.errors import RayStartError


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
