"""One cluster for the tests that do not need one of their own, and short directories."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_stream
from ray_stream import Cluster

NAME = "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Iterator[Path]:
    """The `data_dir` of the shared cluster."""
    path = Path(tempfile.mkdtemp(prefix="rs-data-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def shared(local_ray: str, shared_dir: Path) -> Iterator[Cluster]:
    """The cluster named `shared`, with two shared partition actors.

    The topic `standing` is there when both are up: no test meets one that is only starting.
    """
    del local_ray
    with ray_stream.start(
        name=NAME, data_dir=shared_dir, config={"partition_actors_max": 2}
    ) as cluster:
        cluster.create_topic("standing", partitions=2)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def starting(local_ray: str, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Start clusters on the local Ray that are stopped at the end, on a directory of the test's."""
    del local_ray
    names = []

    def start(name: str, **options: Any) -> Cluster:  # noqa: ANN401 - as `start` takes them
        names.append(name)
        return ray_stream.start(name=name, **{"data_dir": tmp_path, **options})

    yield start
    from ray_stream.actors import bootstrap

    for name in names:
        bootstrap.stop_cluster(name)
