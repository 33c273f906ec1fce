"""What every test stands on: a home of its own, hypothesis profiles, and one local Ray."""

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TMP = "/tmp"  # a Ray socket's path must fit in 107 bytes; macOS' own TMPDIR alone takes half
HOME = pytest.StashKey[str]()

QUIET = [HealthCheck.too_slow]  # a machine that others use, too
settings.register_profile(
    "usual", deadline=None, max_examples=50, print_blob=True, suppress_health_check=QUIET
)
settings.register_profile(
    "deep", deadline=None, max_examples=1_000, print_blob=True, suppress_health_check=QUIET
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


def pytest_configure(config: pytest.Config) -> None:
    """Cut the run off from this user's Ray: its address, and its token in the home directory.

    An xdist worker keeps the home that its controller made. A run in the background of a script is
    given an ignored Ctrl-C, and so would everything that it starts.
    """
    gc.set_threshold(100_000, 20, 100)  # at its usual pace it takes a fifth of a simulation
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not hasattr(config, "workerinput"):
        os.environ["HOME"] = config.stash[HOME] = tempfile.mkdtemp(prefix="rs-home-", dir=TMP)


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := config.stash.get(HOME, None):
        shutil.rmtree(home, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The layers run apart, so a test that slips a Ray into the wrong one must not pass."""
    for item in items:
        uses_ray = "local_ray" in getattr(item, "fixturenames", ())
        if uses_ray and item.get_closest_marker("ray") is None:
            raise pytest.UsageError(f"{item.nodeid} uses local_ray: mark it `ray`")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """The one Ray of this run, for tests marked `ray`: its GCS address."""
    import ray

    root = tempfile.mkdtemp(prefix="rs-", dir=TMP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            namespace="ray_stream_tests",
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=root,
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[1]
