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
import ray
from click.testing import CliRunner

import ray_stream
from ray_stream import Cluster
from ray_stream.cli.application import application
from ray_stream.errors import ClusterNotFoundError
from tests.ray.drivers import CLEARED, family, is_running, kill, wait_until_ended

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
            process_group=0,
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


@pytest.mark.slow
def test_a_sigterm_to_all_of_a_foreground_cluster_at_once_ends_it_soon_and_loses_nothing(
    foreground: subprocess.Popen[str], data_dir: str
) -> None:
    """As a supervisor stops a service: Ray's processes are told to end when we are."""
    where = ("--data-dir", data_dir)
    succeeded("topic", "create", "kept", *where)
    succeeded("produce", "kept", *where, stdin="acknowledged\n")
    started = family(foreground.pid)
    os.killpg(foreground.pid, signal.SIGTERM)
    _, said = foreground.communicate(timeout=30)
    assert foreground.returncode == -signal.SIGTERM
    assert "Traceback" not in said
    assert "what was acknowledged is on disk" in said
    wait_until_ended(started)
    checked = command("verify", data_dir)
    assert checked.returncode == 0, checked.stderr
    files = [one for one in Path(data_dir).rglob("*") if one.is_file()]
    assert any(b"acknowledged" in one.read_bytes() for one in files)


@pytest.mark.slow
def test_on_a_running_ray_start_deploys_and_returns(local_ray: str, data_dir: str) -> None:
    """And `stop` ends the cluster, not the Ray that others use."""
    where = ("--name", "deployed", "--address", local_ray)
    told = succeeded("start", "--data-dir", data_dir, *where)
    assert told.startswith("cluster 'deployed' runs on the Ray at")
    with ray_stream.connect(name="deployed") as cluster:
        cluster.create_topic("t")
    succeeded("stop", *where)
    assert ray.is_initialized()
    with pytest.raises(ClusterNotFoundError):
        ray_stream.connect(name="deployed")


def test_ctrl_c_ends_a_consumer_without_a_traceback(shared: Cluster, local_ray: str) -> None:
    shared.create_topic("interrupted")
    with shared.producer() as producer:
        producer.send("interrupted", b"one")
    where = ("--name", shared.name, "--address", local_ray)
    with subprocess.Popen(
        [SCRIPT, "consume", "interrupted", "--from", "earliest", *where],
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
    shared.delete_topic("interrupted")


def here(cluster: Cluster, *arguments: str) -> str:
    """A command in this process, which is connected already."""
    result = CliRunner().invoke(application, [*arguments, "--name", cluster.name])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_topics_are_made_shown_changed_and_deleted(shared: Cluster) -> None:
    here(shared, "topic", "create", "cli", "--config", "durability=replicated")
    rows = [line.split() for line in here(shared, "topic", "list").splitlines()]
    assert ["cli", "1", "1", "replicated"] in rows
    here(shared, "topic", "alter", "cli", "--partitions", "3", "--config", "segment_bytes=1048576")
    described = json.loads(here(shared, "topic", "describe", "cli", "--json"))
    assert [one["end_offset"] for one in described["partitions"]] == [0, 0, 0]
    assert described["config"]["segment_bytes"] == 1048576
    assert "segment_bytes=1048576" in here(shared, "topic", "describe", "cli")
    here(shared, "topic", "delete", "cli", "--yes")
    names = {one["topic"] for one in json.loads(here(shared, "topic", "list", "--json"))}
    assert "cli" not in names


def test_what_cannot_be_sent_is_told_by_its_line(shared: Cluster) -> None:
    shared.create_topic("lines", max_message_bytes=10)
    for given, said in (
        ("k:v\nk:much too long\n", "this was line 2, which was not sent"),
        ("k:v\nno separator\n", "line 2 has no key separator ':'"),
    ):
        arguments = ["produce", "lines", "--key-separator", ":", "--name", shared.name]
        result = CliRunner().invoke(application, arguments, input=given)
        assert result.exit_code == 1
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    ends = [one.end_offset for one in shared.describe_topic("lines").partitions]
    assert ends == [2]
    shared.delete_topic("lines")


def test_a_place_to_start_is_an_offset_or_a_time_in_chosen_partitions(shared: Cluster) -> None:
    shared.create_topic("places", partitions=2)
    with shared.producer() as producer:
        for number in range(4):
            producer.send_and_wait(
                "places", b"%d" % number, partition=1, timestamp_ms=number * 60_000
            )
    until = ("--until", "end", "--partition", "1")
    assert here(shared, "consume", "places", "--from", "2", *until).split() == ["2", "3"]
    time = "1970-01-01T00:02Z"
    assert here(shared, "consume", "places", "--from", time, *until).split() == ["2", "3"]
    assert here(shared, "consume", "places", "--from", "earliest", "--max", "1").split() == ["0"]
    shared.delete_topic("places")


def test_bytes_that_are_no_text_survive_as_base64(shared: Cluster) -> None:
    shared.create_topic("binary")
    with shared.producer() as producer:
        producer.send("binary", b"\xff\x00", key=b"k", headers=[("h", b"\xfe"), ("n", None)])
        producer.send("binary", None, key=b"gone")
    shown = here(
        shared, "consume", "binary", "--from", "earliest", "--until", "end", "--format", "json"
    )
    first, second = (json.loads(line) for line in shown.splitlines())
    assert (first["key"], first["value_base64"]) == ("k", "/wA=")
    assert first["headers"] == [["h", {"base64": "/g=="}], ["n", None]]
    assert (second["key"], second["value"]) == ("gone", None)
    shared.delete_topic("binary")
