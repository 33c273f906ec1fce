"""What one directory of a broker does to the others of its node."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_stream.actors.broker import BrokerActor
from ray_stream.actors.directories import BrokerDirectories
from ray_stream.config import TopicConfig
from ray_stream.errors import StorageFullError
from ray_stream.log import directory
from ray_stream.log.locks import Holder
from ray_stream.log.storage import DiskFile, DiskStorage, File
from ray_stream.metadata.commands import BrokerRegistered
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions, ReleasePartitions
from tests.unit.actors.test_partition_host import TOPIC, Rig
from tests.unit.actors.test_refusals import spec_of

ME = Holder(pid=1, start_time=1, boot_id="boot")
IDS = ["a" * 32, "b" * 32]


def directories(root: Path) -> BrokerDirectories:
    made = BrokerDirectories(str(root), "host", ME)
    for one in IDS:
        made.make("cluster", one, 0, IDS[0])
    return made


def registered(epoch: int = 5) -> BrokerRegistered:
    return BrokerRegistered("cluster", epoch, 0, 0, IDS, [])


def test_a_deleted_log_that_cannot_be_removed_does_not_keep_a_broker_from_serving(
    tmp_path: Path,
) -> None:
    held = directories(tmp_path)
    doomed = tmp_path / IDS[0] / f"{TOPIC}-0.deleted"
    (doomed / "lost+found").mkdir(parents=True)
    held.accept(registered())
    assert held.held() == IDS


def test_a_directory_that_vanished_does_not_keep_a_broker_from_serving_the_others(
    tmp_path: Path,
) -> None:
    held = directories(tmp_path)
    shutil.rmtree(tmp_path / IDS[0])
    held.accept(registered())
    assert directory.read_identity(DiskStorage(), str(tmp_path / IDS[1])).controller_epoch == 5


def test_a_directory_that_goes_during_a_survey_does_not_end_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = directories(tmp_path)
    exists = DiskStorage.exists

    def going(self: DiskStorage, path: str) -> bool:
        there = exists(self, path)
        if path == f"{tmp_path}/{IDS[1]}/{directory.IDENTITY_NAME}":
            shutil.rmtree(tmp_path / IDS[1])
        return there

    monkeypatch.setattr(DiskStorage, "exists", going)
    seen = held.survey(take_locks=False)
    assert [one.directory_id for one in seen.directories] == IDS[:1]


class _InTheMidst(DiskStorage):
    """A host's disk, on which something happens just before its new log gets a checkpoint."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then: Callable[[], None] | None = then

    def open(self, path: str, *, create: bool = False) -> File:
        if ".new/" in path and path.endswith(".tmp") and self.then is not None:
            then, self.then = self.then, None
            then()
        return super().open(path, create=create)


def test_a_broker_that_registers_again_leaves_the_log_that_a_host_is_making(
    tmp_path: Path,
) -> None:
    held = directories(tmp_path)
    storage = _InTheMidst(lambda: held.accept(registered()))
    rig = Rig(tmp_path / IDS[0], TopicConfig(), storage)
    spec = spec_of(rig, 7)
    answers: list[Any] = []
    rig.control.prepare(PreparePartitions({"dir": rig.root}, [spec]), answers.append)
    assert answers[0].results == [(TOPIC, 7, "")]


def test_a_host_is_not_ended_by_a_directory_that_its_broker_has_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(), DiskStorage())
    answers: list[Any] = []
    rig.control.prepare(PreparePartitions({}, [spec_of(rig, 7)]), answers.append)
    ((_, _, reason),) = answers[0].results
    assert reason


def test_one_log_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(), DiskStorage())
    specs = [spec_of(rig, number) for number in (7, 8)]
    rig.control.prepare(PreparePartitions({"dir": rig.root}, specs), lambda _: None)
    (Path(rig.root) / f"{TOPIC}-7" / "lost+found").mkdir()
    keys = [(TOPIC, 7), (TOPIC, 8)]
    placed = [(TOPIC, 7, "dir"), (TOPIC, 8, "dir")]
    answers: list[Any] = []
    rig.control.release(ReleasePartitions(keys, True, {"dir": rig.root}, placed), answers.append)
    assert not (Path(rig.root) / f"{TOPIC}-8").exists()


@pytest.mark.parametrize("where", ["session", "start"])
def test_a_broker_whose_work_broke_ends_and_is_replaced(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()
    status: list[int] = []

    def end(code: int) -> None:
        status.append(code)
        ended.set()

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("logging.shutdown", lambda: None)

    async def find_living() -> dict[str, Any]:
        if where == "start":
            raise RuntimeError("the GCS is away")
        return {}

    async def session() -> None:
        raise FileNotFoundError("a directory is gone")

    async def run() -> None:
        actor: Any = BrokerActor.__new__(BrokerActor)
        actor._main = None
        actor._tasks = set()
        actor._hosts = SimpleNamespace(find_living=find_living)
        actor._session = session
        actor._dispatch = lambda _: None
        await actor.start()
        await asyncio.wait_for(ended.wait(), 30)

    asyncio.run(run())
    assert set(status) == {70}


def test_a_full_disk_does_not_keep_a_broker_from_serving_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = directories(tmp_path)

    def full(*_: object) -> None:
        raise StorageFullError("no space")

    monkeypatch.setattr(DiskFile, "write", full)
    held.accept(registered())


@pytest.mark.parametrize("what", ["look", "lead", "roll", "release"])
def test_a_partition_whose_directory_is_gone_does_not_end_its_host(
    what: str, tmp_path: Path
) -> None:
    rig = Rig(tmp_path, TopicConfig(segment_bytes=1024 * 1024), DiskStorage())
    specs = [spec_of(rig, number) for number in range(2)]
    rig.control.prepare(PreparePartitions({"dir": rig.root}, specs), lambda _: None)
    rig.control.lead(LeadPartitions([(TOPIC, one, 0) for one in range(2)]), lambda _: None)
    rig.produce(b"a")
    rig.syncs.finish()
    shutil.rmtree(Path(rig.root) / f"{TOPIC}-0")
    match what:
        case "look":
            for _ in range(4):
                rig.clock.ms += 1_000
                rig.control.tick()
        case "lead":
            rig.control.lead(LeadPartitions([(TOPIC, 0, 1)]), lambda _: None)
        case "roll":
            for _ in range(3):
                rig.produce(b"x" * 700_000)
        case _:
            rig.control.release(ReleasePartitions([(TOPIC, 0)], False, {}, []), lambda _: None)
    # Whatever leaves one of these calls ends the actor's process (`actors.loop`).
    assert rig.host.partitions[TOPIC, 1].log.offline == ""
