"""`kill -9` of every process of a Ray under load, and a start on what is left."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.load import Load
from tests.ray.drivers import Driver, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE_S = 120.0
PARTITIONS = 4


@dataclasses.dataclass(frozen=True)
class Running:
    """What workers find the cluster by."""

    name: str
    address: str


@pytest.fixture
def history() -> Iterator[Path]:
    """Where the workers write."""
    path = Path(tempfile.mkdtemp(prefix="rs-h-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_everything_acknowledged_is_there_after_all_of_ray_was_killed_at_once(
    tmp_path: Path, history: Path
) -> None:
    data = str(tmp_path / "data")
    script = f"""
        with ray_stream.start(data_dir={data!r}) as cluster:
            cluster.create_topic("written", partitions={PARTITIONS})
            tell(cluster.address)
            hear()
    """
    with (
        Driver(script) as driver,
        Load(
            Running("default", driver.hear(PATIENCE_S)),
            "written",
            history,
            producers=2,
            consumers=1,
        ) as load,
    ):
        every = list(range(PARTITIONS))
        load.wait_for_acknowledgements(time.monotonic(), every, PATIENCE_S)
        driver.kill_everything()
        load.kill()
    taken, ends, report = run(
        f"""
        from pathlib import Path
        from tests.chaos.load import judge
        from tests.history.checker import describe
        with ray_stream.start(data_dir={data!r}) as cluster:
            report = judge(cluster, "written", Path({str(history)!r}))
            with cluster.producer() as producer:
                taken = [producer.send_and_wait("written", b"x", partition=one).offset
                         for one in range({PARTITIONS})]
            ends = [one.end_offset for one in cluster.describe_topic("written").partitions]
        tell(taken, ends, [report.valid, report.acknowledged, describe(report)])
        """,
        timeout=PATIENCE_S,
    )
    valid, acknowledged, description = report
    assert valid, description
    assert acknowledged
    assert ends == [offset + 1 for offset in taken]
