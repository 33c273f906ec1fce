"""`start` and `connect`: which Ray, which cluster, and what they never do."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

import ray_stream
from ray_stream import Cluster, errors
from tests.ray.drivers import run

pytestmark = pytest.mark.ray
Start = Callable[..., Cluster]


def test_a_running_ray_is_used_and_left_running(starting: Start, local_ray: str) -> None:
    with starting("left") as cluster:
        assert (cluster.address, cluster.embedded) == (local_ray, False)
        cluster.create_topic("t")
    with ray_stream.connect(name="left") as again:
        assert again.topics() == ["t"]
        assert again.cluster_id == cluster.cluster_id


def test_start_attaches_to_the_cluster_that_runs(shared: Cluster, shared_dir: Path) -> None:
    with ray_stream.start(name=shared.name) as plain:
        assert plain.cluster_id == shared.cluster_id
    same = {"partition_actors_max": 2}
    with ray_stream.start(name=shared.name, data_dir=shared_dir, config=same) as exact:
        assert exact.cluster_id == shared.cluster_id


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"data_dir": "/somewhere/else"}, "/somewhere/else"),
        ({"config": {"partition_actors_max": 3}}, "partition_actors_max=2"),
        ({"nodes": {"no": "such"}}, "nodes"),
    ],
)
def test_attaching_with_other_settings_is_refused(
    shared: Cluster, options: dict[str, object], word: str
) -> None:
    with pytest.raises(errors.ClusterConfigMismatchError, match=word):
        ray_stream.start(name=shared.name, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("local_ray")
def test_a_cluster_that_does_not_run_is_not_found() -> None:
    with pytest.raises(errors.ClusterNotFoundError, match=r"'absent'.*ray_stream\.start"):
        ray_stream.connect(name="absent")


def test_clusters_live_side_by_side(starting: Start, shared: Cluster) -> None:
    other = starting("beside")
    shared.create_topic("only-in-shared")
    other.create_topic("only-in-beside")
    assert other.topics() == ["only-in-beside"]
    assert "only-in-beside" not in shared.topics()
    other.shutdown()
    assert "only-in-shared" in shared.topics()
    shared.delete_topic("only-in-shared")


def test_two_that_start_a_cluster_at_once_get_the_same_one(starting: Start) -> None:
    got: list[Cluster] = []
    threads = [threading.Thread(target=lambda: got.append(starting("twins"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = got
    assert first.cluster_id == second.cluster_id
    first.create_topic("t")
    assert second.topics() == ["t"]


def test_a_thread_that_ended_has_left_a_cluster_behind(starting: Start) -> None:
    got: list[Cluster] = []
    thread = threading.Thread(target=lambda: got.append(starting("threaded")))
    thread.start()
    thread.join()
    got[0].create_topic("t")
    with got[0].producer() as producer:
        assert producer.send_and_wait("t", b"x").offset == 0


def test_shutdown_stops_the_cluster_and_not_ray(starting: Start) -> None:
    cluster = starting("stopped")
    cluster.shutdown()
    assert ray.is_initialized()
    with pytest.raises(errors.ClusterNotFoundError):
        ray_stream.connect(name="stopped")
    with pytest.raises(errors.ClosedError):
        cluster.topics()


def test_connect_to_nothing_says_how_to_start_and_starts_no_ray(tmp_path: Path) -> None:
    found = run(
        """
        import ray
        said = [refusal(ray_stream.connect), refusal(ray_stream.connect, data_dir=os.getcwd()),
                refusal(ray_stream.connect, address="127.0.0.1:1"),
                refusal(ray_stream.start, address="127.0.0.1:1")]
        tell(said, ray.is_initialized(), os.listdir(os.environ["RAY_TMPDIR"]))
        """,
        XDG_DATA_HOME=str(tmp_path),
    )
    said, initialized, files = found
    assert [name for name, _ in said] == ["ClusterNotFoundError"] * 4
    assert "ray_stream.start(" in said[0][1]
    assert "127.0.0.1:1" in said[2][1]
    assert not initialized
    assert set(files) == {"stdout", "stderr"}, "a Ray was started"
    assert not list(tmp_path.iterdir()), "connect made a directory"


@pytest.mark.parametrize("address", ["auto", "local"])
def test_an_address_that_joins_whatever_is_about_is_refused(address: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="host:port"):
        ray_stream.connect(address=address)


def test_another_ray_than_the_one_of_this_process_is_refused(local_ray: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=local_ray):
        ray_stream.connect(address="10.1.2.3:6379")


def test_the_ray_of_this_process_may_be_named_in_other_words(shared: Cluster) -> None:
    port = shared.address.rpartition(":")[2]
    with ray_stream.connect(name=shared.name, address=f"127.0.0.1:{port}") as cluster:
        assert cluster.cluster_id == shared.cluster_id


def test_ray_is_found_by_the_environment(shared: Cluster) -> None:
    topics, address = run(
        f"""
        with ray_stream.connect(name={shared.name!r}) as cluster:
            tell(cluster.topics(), cluster.address)
        """,
        RAY_ADDRESS=shared.address,
    )
    assert topics == shared.topics()
    assert address == shared.address


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "a b", None, 7])
def test_a_cluster_name_that_cannot_be_one_is_refused(name: object) -> None:
    for call in (ray_stream.start, ray_stream.connect):
        with pytest.raises(errors.InvalidArgumentError, match="cluster name"):
            call(name=name)  # type: ignore[arg-type]


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(errors.UnknownOptionError, match="partition_actors_max"):
        ray_stream.start(config={"partition_actor_max": 2})


def test_labels_that_no_node_has_are_refused(starting: Start) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="labels"):
        starting("nowhere", nodes={"disk": "none"})
