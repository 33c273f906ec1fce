"""An embedded cluster: a local Ray that `start` starts, in a driver of its own.

The tests run in the order of a life: it serves, others join it, it is killed, it comes back.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ray_stream
from ray_stream import Cluster, Record, errors
from tests.ray.batches import send
from tests.ray.drivers import Driver, family, is_running, run, wait_until_ended

pytestmark = pytest.mark.ray
BATCH = [b"s0", b"s1", b"s2"]
PRODUCER_ID = 7 << 32

LIFE = """
import asyncio, threading

async def main():
    return await asyncio.to_thread(ray_stream.start, data_dir={data_dir!r})

cluster = asyncio.run(main())           # the thread that it ran on ends here
cluster.create_topic("numbers", partitions=2)
cluster.create_topic("batches", durability="replicated")
with cluster.producer() as producer:
    for number in range(100):
        producer.send("numbers", b"%d" % number, key=b"%d" % number)
tell(os.getpid(), cluster.address, cluster.embedded, cluster.cluster_id)
while True:
    hear()
    tell(len(list(cluster.consumer("numbers", auto_offset_reset="earliest", until="end"))))
"""


@dataclass
class Life:
    driver: Driver
    data_dir: Path
    pid: int
    address: str
    cluster_id: str


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    data_dir = tmp_path_factory.mktemp("embedded")
    with Driver(LIFE.format(data_dir=str(data_dir))) as driver:
        pid, address, embedded, cluster_id = driver.hear()
        assert embedded
        yield Life(driver, data_dir, pid, address, cluster_id)


def records(cluster: Cluster, topic: str) -> list[Record]:
    with cluster.consumer(topic, auto_offset_reset="earliest", until="end") as consumer:
        return list(consumer)


def test_it_says_where_it_is(life: Life) -> None:
    said = json.loads((life.data_dir / "default" / "cluster.json").read_text(encoding="utf-8"))
    assert said["address"] == life.address
    assert said["pid"] == life.pid


def test_another_driver_finds_it_by_its_directory_and_does_not_own_it(life: Life) -> None:
    script = """
    import ray
    with ray_stream.{call}(data_dir={data_dir!r}) as cluster:
        tell(cluster.address, cluster.embedded, cluster.topics())
    """
    for call in ("connect", "start"):
        found = run(script.format(call=call, data_dir=str(life.data_dir)))
        assert found == [life.address, False, ["batches", "numbers"]]
    life.driver.say()
    assert life.driver.hear() == 100, "it does not serve any more"


def test_a_relative_directory_is_the_callers(life: Life) -> None:
    cluster_id = run(
        f"""
        os.chdir({str(life.data_dir.parent)!r})
        tell(ray_stream.connect(data_dir={life.data_dir.name!r}).cluster_id)
        """
    )
    assert cluster_id == life.cluster_id


@pytest.mark.usefixtures("local_ray")
def test_a_second_ray_on_its_directory_is_refused_and_neither_is_hurt(life: Life) -> None:
    with pytest.raises(errors.DataDirInUseError) as caught:
        ray_stream.start(data_dir=life.data_dir, config={"lock_timeout_ms": 500})
    assert life.address in str(caught.value)
    pids = [int(word) for word in str(caught.value).split() if word.isdecimal()]
    assert any(is_running(pid) for pid in pids)
    with pytest.raises(errors.ClusterNotFoundError):
        ray_stream.connect()
    life.driver.say()
    assert life.driver.hear() == 100, "it does not serve any more"


@pytest.fixture(scope="module")
def sent(life: Life) -> list[object]:
    """A batch of an idempotent producer, acknowledged before the end; how it was answered."""
    script = f"""
    from tests.ray.batches import send
    cluster = ray_stream.connect(data_dir={str(life.data_dir)!r})
    answer = send(cluster, "batches", {BATCH!r}, producer_id={PRODUCER_ID}, sequence=0)
    tell(answer.base_offset, answer.duplicate)
    """
    answer: list[object] = run(script, PYTHONPATH=str(Path(__file__).parents[2]))
    return answer


@pytest.fixture(scope="module")
def killed(life: Life, sent: list[object]) -> Life:
    """The life, ended by `kill -9` of every process of its Ray session at once."""
    assert sent == [0, False]
    pids = life.driver.kill_everything()
    assert len(pids) > 5
    wait_until_ended(pids)
    return life


@pytest.mark.usefixtures("local_ray")
def test_after_kill_9_of_every_process_everything_is_there_again(killed: Life) -> None:
    with ray_stream.start(data_dir=killed.data_dir) as cluster:
        try:
            assert cluster.cluster_id == killed.cluster_id
            assert cluster.topics() == ["batches", "numbers"]
            assert len(cluster.describe_topic("numbers").partitions) == 2
            assert cluster.describe_topic("batches").config["durability"] == "replicated"
            found = records(cluster, "numbers")
            assert sorted(int(record.value) for record in found) == list(range(100))
            again = send(cluster, "batches", BATCH, producer_id=PRODUCER_ID, sequence=0)
            assert (again.base_offset, again.duplicate) == (0, True)
            following = send(cluster, "batches", [b"s3"], producer_id=PRODUCER_ID, sequence=3)
            assert (following.base_offset, following.duplicate) == (3, False)
        finally:
            cluster.shutdown()


@pytest.mark.slow
def test_leaving_the_block_stops_everything_quietly_and_data_stays(killed: Life) -> None:
    script = f"""
    with ray_stream.start(data_dir={str(killed.data_dir)!r}) as cluster:
        tell(cluster.embedded)
        hear()
        with cluster.producer() as producer:
            producer.send("numbers", b"100")
    tell("left")
    import ray
    tell(ray.is_initialized())
    """
    with Driver(script) as driver:
        assert driver.hear()
        pids = family(driver.pid)[1:]
        driver.say()
        assert driver.hear() == "left"
        wait_until_ended(pids)
        assert driver.hear() is False
        driver.finish()
        assert not (killed.data_dir / "default" / "cluster.json").exists()
        assert (driver.stdout(), driver.stderr()) == ("", "")


def test_start_says_nothing(killed: Life) -> None:
    assert (killed.driver.stdout(), killed.driver.stderr()) == ("", "")
    assert [path.name for path in killed.data_dir.iterdir()] == ["default"]
