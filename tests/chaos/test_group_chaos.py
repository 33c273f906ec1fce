"""`make chaos`: members, coordinators and partition actors killed while a group handles records."""

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from ray.exceptions import RayError

from ray_stream import Cluster
from ray_stream.errors import RayStreamError
from ray_stream.testing.handled import BEGUN, HANDLED, judge_handled, read_notes
from tests.chaos.handlers import hosts, is_coordinator, members, noting
from tests.ray.drivers import Driver

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ROUNDS = int(os.environ.get("RAY_STREAM_CHAOS_ROUNDS", "20"))
SEED = int(os.environ.get("RAY_STREAM_CHAOS_SEED", "0"))
RECORDS = int(os.environ.get("RAY_STREAM_CHAOS_RECORDS", "300000"))
PARTITIONS = 6
KINDS = ("member", "coordinator", "host")
MOMENTS = (BEGUN, HANDLED)
"""When a member is killed: with a batch in hand, and with one done and not committed."""
TAKES_S = 0.04
"""What handlers take for a batch: so long there is to hit them."""
PATIENCE_S = 120.0


def pick(cluster: Cluster, kind: str, rng: random.Random) -> int:
    """A process of that kind, as soon as one answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = members(cluster) if kind == "member" else hosts(cluster)
        except (RayError, RayStreamError):
            found = {}  # who would know is away just now
        if kind != "member":
            found = {n: pid for n, pid in found.items() if is_coordinator(n) == (kind != "host")}
        if found:
            return rng.choice(sorted(found.values()))
        assert time.monotonic() < deadline, f"there is no {kind}"
        time.sleep(0.05)


def until_noted(notes: Path, kind: str) -> int:
    """Wait until a living member has noted something more; returns its process id."""
    deadline = time.monotonic() + PATIENCE_S
    before = {path: path.stat().st_size for path in notes.glob(f"*.{kind}")}
    while True:
        for path in notes.glob(f"*.{kind}"):
            if path.stat().st_size > before.get(path, 0):
                return int(path.name.partition("-")[0])
        assert time.monotonic() < deadline, "nobody handles anything"
        time.sleep(0.001)


def kill_one(cluster: Cluster, notes: Path, round_: int, rng: random.Random) -> str:
    """Kill the process whose turn it is while there is work; returns its kind."""
    kind = KINDS[round_ % len(KINDS)]
    if kind == "member":
        moment = MOMENTS[round_ // len(KINDS) % len(MOMENTS)]
        victim = until_noted(notes, moment)
    else:
        victim = pick(cluster, kind, rng)
        until_noted(notes, HANDLED)
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(victim, signal.SIGKILL)
    return kind


def test_every_record_is_handled_whoever_is_killed(
    starting: Callable[..., Cluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    notes = tmp_path / "notes"
    notes.mkdir()
    kills = dict.fromkeys(KINDS, 0)
    cluster = starting("groupchaos", data_dir=tmp_path / "data", config={"partition_actors_max": 2})
    cluster.create_topic("flights", partitions=PARTITIONS)
    group = cluster.run_consumers(
        noting(),
        topics=["flights"],
        group="noting",
        actors=3,
        batch_format="arrow",
        constructor_args=(str(notes), TAKES_S),
        auto_offset_reset="earliest",
    )
    with cluster.producer(linger_ms=5) as producer:
        for round_ in range(ROUNDS):
            share = RECORDS // ROUNDS
            for number in range(share):
                if number == share // 2:
                    kills[kill_one(cluster, notes, round_, rng)] += 1
                producer.send("flights", b"%d-%d" % (round_, number), key=b"%d" % (number % 997))
    group.wait(idle=2.0, timeout=PATIENCE_S)
    group.stop()
    ends = cluster.describe_topic("flights").partitions
    verdict = judge_handled(
        read_notes(notes),
        {one.partition: one.end_offset for one in ends},
        read_notes(notes, BEGUN),
    )
    with capsys.disabled():
        print(f"\nseed {SEED}: killed {kills}; {verdict}")
    assert verdict.valid, str(verdict)
    assert verdict.distinct == ROUNDS * (RECORDS // ROUNDS)
    assert verdict.cut_short or not kills["member"], "no kill landed inside a handler"
    assert verdict.repeated or kills["member"] < len(MOMENTS), "no kill landed before a commit"


def test_a_killed_coordinator_costs_no_rebalance_and_no_commit(
    starting: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    times = []
    cluster = starting("coordination", config={"partition_actors_max": 2})
    cluster.create_topic("flights", partitions=2)
    stop = threading.Event()

    def load() -> None:
        with cluster.producer() as producer:
            while not stop.wait(0.001):
                producer.send("flights", b"x")

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    try:
        with cluster.consumer(
            "flights", group="steady", auto_offset_reset="earliest", enable_auto_commit=False
        ) as consumer:
            while not consumer.poll():
                pass
            consumer.commit()
            epoch = cluster.describe_group("steady").epoch
            assigned = consumer.assignment()
            for _ in range(max(3, ROUNDS // 4)):
                committed = consumer.committed(assigned)
                (pid,) = {pid for name, pid in hosts(cluster).items() if is_coordinator(name)}
                os.kill(pid, signal.SIGKILL)
                begun = time.monotonic()
                consumer.poll()
                consumer.commit(timeout=PATIENCE_S)
                times.append(time.monotonic() - begun)
                after = consumer.committed(assigned)
                for one in assigned:
                    assert (after[one] or 0) >= (committed[one] or 0), "a commit was lost"
                assert cluster.describe_group("steady").epoch == epoch, "a rebalance"
                assert consumer.assignment() == assigned
    finally:
        stop.set()
        loading.join(PATIENCE_S)
    with capsys.disabled():
        print(
            f"\ncommits again after {statistics.median(times):.2f} s (median of {len(times)}), "
            f"at most {max(times):.2f} s"
        )


def test_committed_offsets_outlive_every_process(tmp_path: Path) -> None:
    """Of a whole cluster: `tests/ray/test_faults_whole.py` kills it; here the reader is a group."""
    script = f"""
    with ray_stream.start(data_dir={str(tmp_path)!r}) as cluster:
        cluster.create_topic("t", exist_ok=True)
        with cluster.producer() as producer:
            producer.send("t", b"1"); producer.send("t", b"2"); producer.send("t", b"3")
        consumer = cluster.consumer("t", group="g", auto_offset_reset="earliest",
                                    enable_auto_commit=False)
        got = consumer.poll(2, timeout=60)
        while len(got) < 2:
            got += consumer.poll(2 - len(got), timeout=60)
        consumer.commit()
        tell("committed")
        hear()
    """
    with Driver(script) as driver:
        assert driver.hear() == "committed"
        driver.kill_everything()
    again = f"""
    from ray_stream import TopicPartition
    with ray_stream.start(data_dir={str(tmp_path)!r}) as cluster:
        with cluster.consumer(group="g") as consumer:
            tell(consumer.committed([TopicPartition("t", 0)])[TopicPartition("t", 0)])
    """
    with Driver(again) as driver:
        assert driver.hear() == 2
