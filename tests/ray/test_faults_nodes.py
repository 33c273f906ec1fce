"""Nodes that die and come back: their partitions serve again, nothing is made in their place."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.drivers import run

PATIENCE_S = 400.0
ONE_MODE = "disabled"
"""A raylet that joins later must not want a token that the first ones never heard of."""
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def home() -> Iterator[Path]:
    """Of Ray's files: a socket's path must be short."""
    path = Path(tempfile.mkdtemp(prefix="rs-n-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_dead_nodes_partitions_are_served_again_by_whoever_sees_its_disk(
    home: Path, tmp_path: Path
) -> None:
    run(
        f"""
        from pathlib import Path
        from tests.ray.nodes import on_one_disk
        on_one_disk(Path({str(home)!r}), {str(tmp_path / "data")!r})
        tell("done")
        """,
        home=home,
        timeout=PATIENCE_S,
        RAY_AUTH_MODE=ONE_MODE,
    )


def test_a_dead_nodes_partitions_wait_for_its_own_disk(home: Path, tmp_path: Path) -> None:
    run(
        f"""
        from pathlib import Path
        from tests.ray.nodes import on_their_own_disks
        on_their_own_disks(Path({str(home)!r}), Path({str(tmp_path / "data")!r}))
        tell("done")
        """,
        home=home,
        timeout=PATIENCE_S,
        RAY_AUTH_MODE=ONE_MODE,
    )
