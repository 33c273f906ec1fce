"""One `fdatasync` of a partition actor fails, by strace: no code of ours knows of the test."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_stream import Cluster
from tests.chaos.targets import signal_all, targets
from tests.ray.test_faults_offline import (
    TOPIC,
    reasons,
    refused,
    repaired,
    values,
    wait_for_reason,
)

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def fail_one_sync(pid: int, path: Path) -> subprocess.Popen[bytes]:
    """Attach to a process; its next sync of that file fails."""
    strace = shutil.which("strace")
    assert strace, "`make chaos` needs strace"
    inject = "inject=fdatasync:error=EIO:when=1"
    process = subprocess.Popen(
        [strace, "-f", "-P", str(path), "-e", "trace=fdatasync", "-e", inject, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"attached" not in process.stderr.readline():
        assert process.poll() is None, "strace cannot attach"
    return process


def test_a_sync_that_fails_takes_its_partition_offline_until_it_is_repaired(
    starting: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = starting("strace")
    cluster.create_topic(TOPIC, partitions=2)
    with cluster.producer() as producer:
        for partition in (0, 1):
            producer.send(TOPIC, b"sure", partition=partition)
    (host,) = [one for one in targets(cluster, TOPIC) if 1 in one.partitions and one.kind == "host"]
    (log,) = [
        one.parent for one in tmp_path.rglob("partition.json") if one.parent.name[-2:] == "-1"
    ]
    (segment,) = log.glob("*.log")
    with fail_one_sync(host.pid, segment) as tracer:
        refused(cluster, 1)
        wait_for_reason(cluster, 1, "Input/output error")
        tracer.kill()  # SIGTERM would have it wait for a process that its broker is ending
        tracer.communicate()
    assert reasons(cluster)[0] == ""
    # Neither another host nor another controller forgets it.
    signal_all([one.pid for one in targets(cluster, TOPIC, served=[0])], signal.SIGKILL)
    targets(cluster, TOPIC, served=[0])
    wait_for_reason(cluster, 1, "Input/output error")
    refused(cluster, 1)
    assert values(cluster, 0) == [b"sure"]
    cluster.shutdown()

    assert f"{TOPIC}-1: records [0, 1) are kept" in repaired(tmp_path)
    again = starting("strace")
    wait_for_reason(again, 1, "")
    targets(again, TOPIC)
    with again.producer() as producer:
        assert producer.send_and_wait(TOPIC, b"again", partition=1).offset == 1
    assert values(again, 1) == [b"sure", b"again"]
