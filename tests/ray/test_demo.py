"""The demo keeps its word, on a part of its data."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.ray.drivers import CLEARED

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_demo_verifies_what_it_wrote_and_leaves_it_sound(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in CLEARED}
    data_dir = str(tmp_path / "data")
    demo = [sys.executable, "-m", "ray_stream.demo", "--flights", "20000", "--data-dir", data_dir]
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as short:
        told = subprocess.run(
            demo,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**environment, "TMPDIR": short},
        )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("verified") == 6
    assert "each of the 20,000 flights exactly once" in told.stdout
    assert told.stdout.count("kill -9 of process") == 2
    assert "to 8 actors, 2 of them idle, and back to 3" in told.stdout
    verify = [str(Path(sys.executable).with_name("ray-stream")), "verify", data_dir]
    assert subprocess.run(verify, check=False, env=environment).returncode == 0
