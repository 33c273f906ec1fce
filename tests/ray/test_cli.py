"""The command line as a person uses it: real processes, a real Ray."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.drivers import CLEARED, family, is_running, kill

pytestmark = pytest.mark.ray
SCRIPT = str(Path(sys.executable).with_name("ray-stream"))
PATIENCE_S = 120


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in CLEARED}


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=environment(),
    )


def succeeded(*arguments: str, stdin: str = "") -> str:
    ended = command(*arguments, stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def foreground(data_dir: str) -> Iterator[subprocess.Popen[str]]:
    """`ray-stream start` on a local Ray of its own, once it is up."""
    with (
        tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as short,
        subprocess.Popen(
            [SCRIPT, "start", "--data-dir", data_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), "RAY_TMPDIR": short, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if "runs on the Ray at" not in line:
            _, said = process.communicate(timeout=PATIENCE_S)
            raise AssertionError(line + said)
        yield process
        if process.poll() is None:
            kill(family(process.pid))


def test_a_day_at_the_command_line(foreground: subprocess.Popen[str], data_dir: str) -> None:
    """Start in the foreground; from other terminals create, produce, consume, look, stop."""
    where = ("--data-dir", data_dir)
    succeeded("topic", "create", "states", "--partitions", "2", *where)
    produced = command(
        "produce", "states", "--key-separator", ":", *where, stdin="UA:late\nAA:on time\n"
    )
    assert (produced.returncode, produced.stderr) == (
        0,
        "2 records acknowledged in topic 'states'\n",
    )

    lines = succeeded(
        "consume", "states", "--from", "earliest", "--max", "2", "--format", "json", *where
    )
    records = [json.loads(line) for line in lines.splitlines()]
    assert {(one["key"], one["value"]) for one in records} == {("UA", "late"), ("AA", "on time")}
    text = succeeded("consume", "states", "--from", "earliest", "--until", "end", *where)
    assert sorted(text.splitlines()) == ["late", "on time"]

    state = json.loads(succeeded("status", "--json", *where))
    assert state["topics"] == [
        {"topic": "states", "partitions": 2, "served": 2, "durability": "fsync"}
    ]
    assert [one["alive"] for one in state["brokers"]] == [True]
    assert {one["niceness"] for one in state["partition_actors"]} == {0}
    assert state["not_served"] == []

    refused = command("consume", "nothing", *where)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1

    in_use = command("verify", data_dir)
    assert in_use.returncode == 1
    assert "is in use by process" in in_use.stderr

    assert "stopped" in succeeded("stop", *where)
    assert foreground.wait(PATIENCE_S) == 0
    assert command("verify", data_dir).returncode == 0


def test_ctrl_c_stops_a_foreground_cluster_in_order(
    foreground: subprocess.Popen[str], data_dir: str
) -> None:
    started = family(foreground.pid)
    foreground.send_signal(signal.SIGINT)
    _, said = foreground.communicate(timeout=PATIENCE_S)
    assert foreground.returncode == 0
    assert "Traceback" not in said
    assert not [pid for pid in started if is_running(pid)]
    absent = command("status", "--data-dir", data_dir)
    assert absent.returncode == 1


def test_on_a_running_ray_start_deploys_and_returns(local_ray: str, data_dir: str) -> None:
    """And `stop` ends the cluster, not the Ray that others use."""
    import ray

    where = ("--name", "deployed", "--address", local_ray)
    told = succeeded("start", "--data-dir", data_dir, *where)
    assert told.startswith("cluster 'deployed' runs on the Ray at")
    succeeded("topic", "create", "t", *where)
    assert succeeded("topic", "list", *where).splitlines()[1].split() == ["t", "1", "1", "fsync"]
    succeeded(
        "topic", "alter", "t", "--partitions", "3", "--config", "segment_bytes=1048576", *where
    )
    described = json.loads(succeeded("topic", "describe", "t", "--json", *where))
    assert len(described["partitions"]) == 3
    assert described["config"]["segment_bytes"] == 1048576
    succeeded("topic", "delete", "t", "--yes", *where)
    assert json.loads(succeeded("topic", "list", "--json", *where)) == []
    succeeded("stop", *where)
    assert command("status", *where).returncode == 1
    assert ray.is_initialized()


def test_ctrl_c_ends_a_consumer_without_a_traceback(local_ray: str, data_dir: str) -> None:
    where = ("--name", "interrupted", "--address", local_ray)
    succeeded("start", "--data-dir", data_dir, *where)
    succeeded("topic", "create", "t", *where)
    succeeded("produce", "t", *where, stdin="one\n")
    with subprocess.Popen(
        [SCRIPT, "consume", "t", "--from", "earliest", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == "one\n"
        consumer.send_signal(signal.SIGINT)
        _, said = consumer.communicate(timeout=PATIENCE_S)
    assert consumer.returncode == 130
    assert said.strip() == ""
    succeeded("stop", *where)
