"""Directories that cannot be used, data that is damaged: what is said, and what still serves."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ray_stream
from ray_stream import Cluster, errors
from ray_stream.actors import spawning
from ray_stream.actors.boot import host_id
from ray_stream.log.directory import Identity, make_directory
from ray_stream.log.storage import DiskStorage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
Start = Callable[..., Cluster]


@pytest.fixture(scope="module")
def original(local_ray: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `data_dir` of a stopped cluster `kept`, with two topics of two partitions."""
    del local_ray
    data_dir = tmp_path_factory.mktemp("original")
    with ray_stream.start(name="kept", data_dir=data_dir) as cluster:
        for topic in ("one", "two"):
            cluster.create_topic(topic, partitions=2)
            with cluster.producer() as producer:
                for partition in (0, 1):
                    for number in range(5):
                        producer.send(topic, b"%d" % number, partition=partition)
        cluster.shutdown()
    return data_dir


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def kept(starting: Start, copied: Path) -> Callable[..., Cluster]:
    """Start the cluster of the copy."""

    def start(**config: int) -> Cluster:
        return starting("kept", data_dir=copied, config=config)

    return start


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A start that failed leaves no actor behind."""
    yield
    if "serves" not in request.node.name:
        assert spawning.living_actors("kept") == []
        assert spawning.living_actors("bad") == []


def broker_directory(data_dir: Path) -> Path:
    (path,) = (one for one in (data_dir / "kept").iterdir() if one.is_dir())
    return path


def partition_directory(data_dir: Path, topic: str, partition: int) -> Path:
    for path in broker_directory(data_dir).glob(f"*-{partition}"):
        hint = json.loads((path / "partition.json").read_text(encoding="utf-8"))
        if hint["topic"] == topic:
            return path
    raise AssertionError(f"no directory of {topic}-{partition}")


def unwritable() -> Path:
    """Where not even root may make a directory."""
    return Path("/proc/self")


def test_an_empty_directory_name_is_refused(starting: Start) -> None:
    with pytest.raises(errors.DataDirError, match="names no directory"):
        starting("bad", data_dir="")


@pytest.mark.parametrize("data_dir", [7, b"\0", object()])
def test_what_is_no_path_is_refused(starting: Start, data_dir: object) -> None:
    with pytest.raises(errors.DataDirError):
        starting("bad", data_dir=data_dir)


def test_a_file_is_refused(starting: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.DataDirError, match="file is a file"):
        starting("bad", data_dir=tmp_path / "file")
    (tmp_path / "bad").touch()
    with pytest.raises(errors.DataDirError, match="bad is a file"):
        starting("bad", data_dir=tmp_path)


def test_a_directory_that_cannot_be_written_is_refused(starting: Start) -> None:
    with pytest.raises(errors.DataDirError, match="/proc/self"):
        starting("bad", data_dir=unwritable())


def test_a_damaged_identity_is_refused(kept: Start, copied: Path) -> None:
    path = broker_directory(copied) / "identity.json"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace('"broker_id": 0', '"broker_id": 1'), encoding="utf-8")
    with pytest.raises(errors.CorruptMetadataError, match=r"identity\.json is damaged"):
        kept()


def rewrite_identity(directory: Path, **changes: object) -> None:
    """As if another program had written it: the checksum is right."""
    import crc32c
    import msgspec

    path = directory / "identity.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    del content["crc32c"]
    content["crc32c"] = crc32c.crc32c(msgspec.json.encode(content, order="sorted"))
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_newer_format_is_refused(kept: Start, copied: Path) -> None:
    rewrite_identity(broker_directory(copied), format_version=2)
    with pytest.raises(errors.DataDirVersionError, match=r"version 2.*newer program"):
        kept()


def test_a_directory_of_another_cluster_is_refused(kept: Start, copied: Path) -> None:
    foreign = broker_directory(copied).with_name("f" * 32)
    shutil.copytree(broker_directory(copied), foreign)
    rewrite_identity(foreign, cluster_id="another", directory_id=foreign.name)
    with pytest.raises(errors.InconsistentClusterIdError, match="another"):
        kept()


def test_a_directory_of_another_host_is_refused(kept: Start, copied: Path) -> None:
    rewrite_identity(broker_directory(copied), host_id="elsewhere")
    with pytest.raises(errors.DataDirSharedError, match="elsewhere"):
        kept()


@pytest.mark.slow
def test_a_missing_metadata_log_is_waited_for_and_nothing_is_made_in_its_place(
    kept: Start, copied: Path
) -> None:
    directory = broker_directory(copied)
    shutil.move(directory / "metadata", copied / "elsewhere")
    before = sorted(directory.iterdir())
    with pytest.raises(errors.DataDirError, match=f"{directory.name}.*nothing is made"):
        kept(start_timeout_ms=10_000)
    assert sorted(directory.iterdir()) == before
    assert [path.name for path in (copied / "kept").iterdir()] == [directory.name]


def test_a_first_start_that_was_cut_off_is_finished_by_the_next(
    starting: Start, tmp_path: Path
) -> None:
    """Its directory was made and its metadata log was not: nothing was ever acknowledged."""
    identity = Identity(
        cluster_id="c" * 32,
        broker_id=0,
        directory_id="d" * 32,
        host_id=host_id(),
        metadata_directory_id="d" * 32,
    )
    make_directory(DiskStorage(), str(tmp_path / "bad"), identity)
    with starting("bad") as cluster:
        assert cluster.cluster_id == "c" * 32
        assert cluster.topics() == []
        cluster.shutdown()


def test_a_damaged_metadata_log_is_refused_and_stays_as_it_is(kept: Start, copied: Path) -> None:
    log = max((broker_directory(copied) / "metadata").glob("*.log"))
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    with pytest.raises(errors.CorruptMetadataError, match="metadata"):
        kept()
    assert log.read_bytes() == content


def test_a_damaged_partition_says_why_and_all_others_serve(kept: Start, copied: Path) -> None:
    checkpoint = partition_directory(copied, "one", 0) / "checkpoint"
    checkpoint.write_bytes(bytes(len(checkpoint.read_bytes())))
    for path in partition_directory(copied, "two", 1).glob("*.log"):
        content = bytearray(path.read_bytes())
        content[150] ^= 1
        path.write_bytes(content)
    with kept() as cluster:
        one = cluster.describe_topic("one").partitions
        assert "checkpoint" in one[0].offline_reason
        assert "\n" not in one[0].offline_reason
        assert one[1].offline_reason == ""
        assert (one[1].beginning_offset, one[1].end_offset) == (0, 5)
        with cluster.producer() as producer:
            assert producer.send_and_wait("one", b"x", partition=1).offset == 5
            assert producer.send_and_wait("two", b"x", partition=1).offset == 5
        with (
            cluster.consumer("two", auto_offset_reset="earliest", until="end") as consumer,
            pytest.raises(errors.CorruptRecordError) as caught,
        ):
            list(consumer)
        assert caught.value.partition == 1
