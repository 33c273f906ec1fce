"""The launcher file's own commands, run on this machine, make a Ray that a cluster starts on.

Not among them: its `ray stop`, which ends every Ray of the machine.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.services import get_node_ip_address

from tests.ray.drivers import CLEARED, Driver, family, kill, wait_until_ended

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import os, ray
from ray_stream.cluster import inspection
with ray_stream.start(
    address={address!r}, data_dir={data_dir!r}, nodes={{"ray-stream": "broker"}}
) as cluster:
    cluster.create_topic("t", partitions=2)
    with cluster.producer() as producer:
        offset = producer.send_and_wait("t", b"x").offset
    pids = inspection.process_ids(cluster).values()
    niceness = [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids]
    tell(offset, len(cluster.metadata().brokers), niceness)
    cluster.shutdown()
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Ray's directory, and the user's home; what runs in it at the end is killed."""
    path = Path(tempfile.mkdtemp(prefix="rs-l-", dir="/tmp"))
    yield path
    pids = sorted({member for pid in _inside(path) for member in family(pid)})
    kill(pids)
    wait_until_ended(pids)
    shutil.rmtree(path, ignore_errors=True)


def _inside(path: Path) -> Iterator[int]:
    """Ray's processes that were told this directory."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if any(bytes(path) in word for word in words) and int(entry.name) != os.getpid():
                yield int(entry.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _start_command(launcher: dict[str, Any], role: str) -> str:
    (command,) = (one for one in launcher[f"{role}_start_ray_commands"] if "ray start" in one)
    assert isinstance(command, str)
    return command


def test_its_commands_start_a_ray_that_serves(repository: Path, scratch: Path) -> None:
    launcher = yaml.safe_load((repository / "cluster.yaml").read_text(encoding="utf-8"))
    port = str(_free_port())
    # What `ray up` does before it runs them: it brings the file over and names the head.
    launcher["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    bootstrap = scratch / "ray_bootstrap_config.yaml"
    bootstrap.write_text(yaml.safe_dump(launcher), encoding="utf-8")
    (scratch / ".ray").mkdir()
    (scratch / ".ray" / "auth_token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    head, worker = _start_command(launcher, "head"), _start_command(launcher, "worker")
    assert "6379" in head
    assert "6379" in worker
    environment = {key: value for key, value in os.environ.items() if key not in CLEARED}
    environment["HOME"] = str(scratch)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["RAY_HEAD_IP"] = get_node_ip_address()  # type: ignore[no-untyped-call]
    for command in (
        f"{head} --temp-dir={scratch} --num-cpus=1 --include-dashboard=false",
        f"{worker} --num-cpus=1",
    ):
        ended = subprocess.run(
            ["/bin/sh", "-c", command.replace("6379", port)],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    address = f"{environment['RAY_HEAD_IP']}:{port}"
    script = SCRIPT.format(address=address, data_dir=str(scratch / "data"))
    with Driver(script, HOME=str(scratch)) as driver:
        offset, brokers, niceness = driver.hear()
        driver.finish()
    assert offset == 0
    assert brokers == 2
    assert set(niceness) == {0}
