"""A partition whose sync failed: offline with a reason, whoever restarts, until it is repaired."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_stream import Cluster, errors
from ray_stream.cli.application import application
from ray_stream.log.offline import EVERYTHING, OfflineMarker, write_marker
from ray_stream.log.storage import DiskStorage
from tests.chaos.targets import signal_all, targets

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE_S = 60.0
TOPIC = "failing"
WHY = "a sync failed: Input/output error"


def reasons(cluster: Cluster) -> list[str]:
    """Why each partition is not served."""
    return [one.offline_reason for one in cluster.describe_topic(TOPIC).partitions]


def wait_for_reason(cluster: Cluster, partition: int, reason: str) -> None:
    """Until the partition says so, when asked why it is not served."""
    deadline = time.monotonic() + PATIENCE_S
    while reason not in (found := reasons(cluster)[partition]):
        assert time.monotonic() < deadline, f"the reason is {found!r}"
        time.sleep(0.05)


def values(cluster: Cluster, partition: int) -> list[bytes]:
    table = cluster.read(TOPIC, partitions=[partition])
    return list(table["value"].to_pylist())


def refused(cluster: Cluster, partition: int) -> None:
    """Nothing is acknowledged there."""
    with cluster.producer(delivery_timeout_ms=1_500, request_timeout_ms=1_000) as producer:
        producer.send(TOPIC, b"never", partition=partition)
        with pytest.raises(errors.RayStreamError):
            producer.flush()


def repaired(data_dir: Path) -> str:
    """What `ray-stream repair` says of a stopped cluster."""
    result = CliRunner().invoke(application, ["repair", str(data_dir)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_partition_whose_sync_failed_says_so_until_it_is_repaired(
    starting: Callable[..., Cluster], tmp_path: Path
) -> None:
    first = starting("offline")
    first.create_topic(TOPIC, partitions=2)
    with first.producer() as producer:
        for partition in (0, 1):
            producer.send(TOPIC, b"sure", partition=partition)
    first.shutdown()
    (log,) = [
        one.parent for one in tmp_path.rglob("partition.json") if one.parent.name[-2:] == "-1"
    ]
    write_marker(DiskStorage(), str(log), OfflineMarker(WHY, None, EVERYTHING))

    second = starting("offline")
    wait_for_reason(second, 1, WHY)
    assert reasons(second)[0] == ""
    refused(second, 1)
    signal_all([one.pid for one in targets(second, TOPIC, served=[0])], signal.SIGKILL)
    targets(second, TOPIC, served=[0])
    wait_for_reason(second, 1, f"{WHY}; stop the cluster, then `ray-stream repair`")
    refused(second, 1)
    assert values(second, 0) == [b"sure"]
    second.shutdown()

    assert f"{TOPIC}-1: records [0, 1) are kept" in repaired(tmp_path)
    third = starting("offline")
    assert reasons(third) == ["", ""]
    with third.producer() as producer:
        assert producer.send_and_wait(TOPIC, b"again", partition=1).offset == 1
    assert values(third, 1) == [b"sure", b"again"]
