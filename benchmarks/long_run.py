"""What only time shows: a log that has grown large, and memory after minutes at full load.

Run: `make bench-long`, or `python benchmarks/long_run.py [--gigabytes 10] [--minutes 10]`. A whole
run writes `benchmarks/results/long_run.json`; a shortened one only prints, unless `--out` says
where. It needs room for what it writes: the large log, and then the minutes' records.

Fetches: one partition is written to 10 GB and another to 10 MB, in batches of the same size. The
same number of records is fetched over and over, at the large log's start, middle and end, and of
the small log, in many short turns; each place once before it is measured, so that the page cache
has all of them.

Memory: one process sends a record at a time, one reads them one by one, both as fast as they can.
Resident memory of both and of the partition actors is taken every few seconds; a minute's figure is
the median of its samples.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ray
from crew import Worker, all_done
from figures import CONFIDENCE, Row
from machine import (
    about_machine,
    end_in_order_when_told,
    memory_of,
    niceness,
    open_many_files,
    versions,
)
from peers import PARTITIONS, RayStream

from ray_stream import Consumer, TopicPartition
from ray_stream.cluster import embedded

RESULT = Path(__file__).parent / "results" / "long_run.json"
GIGABYTES, MINUTES = 10.0, 10.0
REPETITIONS = 21
RECORD = 100
SMALL_BYTES = 10_000_000
READ = 80_000
"""Records of one fetch: most of the small log, so that there is something to ask ahead for."""
TURNS, TIMES = 10, 10
"""Of each place in one figure, and fetches in a turn. What else the machine does then falls on all
places alike."""
FETCH_BYTES = 1024 * 1024
WITHIN = 0.9
SETTLED_MINUTE = 2
GROWTH_MAX = 1.05
SAMPLE_S = 5.0
TRIAL_S = 10.0
SIZES = (100, 50, 20, 10)
OVERHEAD = 16
"""Bytes that a stored record takes beyond its value, at most."""
SPARE_BYTES = 5_000_000_000
SHARE = 0.8


def written(ours: RayStream, topic: str, total: int, step: int) -> list[float]:
    """Fill a topic; MB/s of each step."""
    ours.make_topic(topic, partitions=1, fsync=False)
    rates = []
    for start in range(0, total, step):
        count = min(step, total - start) // RECORD
        rates.append(count * RECORD / 1e6 / ours.send_all(topic, b"x" * RECORD, count))
        print(f"{topic}: {(start + step) / 1e9:.2f} GB, {rates[-1]:,.0f} MB/s", flush=True)
    return rates


def fetched(consumer: Consumer, topic: str, offset: int) -> float:
    """Seconds that fetching the same ones several times takes."""
    partition = TopicPartition(topic, 0)
    begun = time.perf_counter()
    for _ in range(TIMES):
        consumer.seek(partition, offset)
        left = READ
        while left:
            left -= consumer.fetch(max_records=left, timeout=10).num_rows
    return time.perf_counter() - begun


def large_log(ours: RayStream, gigabytes: float) -> dict[str, Any]:
    """The rows about fetches."""
    size = max(int(gigabytes * 1e9), 2 * SMALL_BYTES)
    rates = written(ours, "large", size, max(size // 10, SMALL_BYTES))
    written(ours, "small", SMALL_BYTES, SMALL_BYTES)
    large = size // RECORD
    places = {
        "small log": ("small", 0),
        "start": ("large", 0),
        "middle": ("large", large // 2),
        "end": ("large", large - SMALL_BYTES // RECORD),
    }
    rows = [
        Row(
            f"fetch at the {name} of a log of {size / 1e9:g} GB beside one of 10 MB",
            "rec/s",
            WITHIN,
            pair=(name, "small log"),
        )
        for name in list(places)[1:]
    ]
    consumers = {}
    for name, (topic, offset) in places.items():
        consumers[name] = ours.cluster.consumer(fetch_max_bytes=FETCH_BYTES)
        consumers[name].assign([TopicPartition(topic, 0)], offset)
        fetched(consumers[name], topic, offset)
        consumers[name].pause()
    for repetition in range(REPETITIONS):
        spent = dict.fromkeys(places, 0.0)
        for turn in range(TURNS):
            order = list(places.items())
            for name, (topic, offset) in order if (repetition + turn) % 2 == 0 else order[::-1]:
                consumers[name].resume()
                spent[name] += fetched(consumers[name], topic, offset)
                consumers[name].pause()
        for name, seconds in spent.items():
            rate = TURNS * TIMES * READ / seconds
            print(f"fetch, {name:10} {rate:14,.0f} rec/s", flush=True)
            for row in rows:
                if name in row.pair:
                    row.add(name, rate)
    for consumer in consumers.values():
        consumer.close()
    ours.drop_topic("large")
    ours.drop_topic("small")
    return {"rows": [row.summary() for row in rows], "written_mb_per_s": rates}


def record_bytes(ours: RayStream, directory: Path, seconds: float) -> int:
    """The largest size at which the disk holds what full load writes in so long."""
    with_trial = "trial"
    ours.make_topic(with_trial, partitions=PARTITIONS, fsync=True)
    worker = Worker(ours)
    assert worker.hear() == "up"
    job = {"job": "flood", "topic": with_trial, "size": SIZES[0], "seconds": min(TRIAL_S, seconds)}
    (told,) = all_done([(worker, job)])
    worker.end()
    ours.drop_topic(with_trial)
    rate = told["records"] / told["seconds"]
    room = SHARE * (shutil.disk_usage(directory).free - SPARE_BYTES)
    for size in SIZES:
        if rate * (size + OVERHEAD) * seconds <= room:
            return size
    needed = rate * (SIZES[-1] + OVERHEAD) * seconds / 1e9
    raise SystemExit(f"{directory} has no room for {needed:.0f} GB: give --directory or --minutes")


def full_load(ours: RayStream, directory: Path, minutes: float) -> dict[str, Any]:
    """Memory, minute by minute."""
    size = record_bytes(ours, directory, minutes * 60)
    print(f"full load for {minutes:g} minutes, records of {size} bytes", flush=True)
    ours.make_topic("flood", partitions=PARTITIONS, fsync=True)
    producer, consumer = Worker(ours), Worker(ours)
    assert (producer.hear(), consumer.hear()) == ("up", "up")
    jobs: list[tuple[Worker, dict[str, Any]]] = [
        (producer, {"job": "flood", "topic": "flood", "size": size, "seconds": minutes * 60}),
        (
            consumer,
            {"job": "read", "topic": "flood", "partitions": list(range(PARTITIONS)), "ends": 1},
        ),
    ]
    actors = {name: pid for name, pid in ours.pids().items() if "/host/" in name}
    pids = {"producer": producer.pid, "consumer": consumer.pid}
    pids |= {f"partition actor {number}": actors[name] for number, name in enumerate(actors)}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    for worker, job in jobs:
        worker.say(job)
    for worker, _ in jobs:
        assert worker.hear() == "ready"
    for worker, _ in jobs:
        worker.say("go")
    nice = niceness()
    _sample(pids, samples, minutes)
    told = producer.hear()
    rate = told["records"] / told["seconds"]
    print(f"{rate:,.0f} rec/s were written; the consumer reads on to the end", flush=True)
    read = consumer.hear()["value"]
    assert read == told["records"], f"{told['records']} records were sent and {read} read"
    producer.end()
    consumer.end()
    ours.drop_topic("flood")
    by_minute = {name: _minutes(found) for name, found in samples.items()}
    return {
        "minutes": minutes,
        "record_bytes": size,
        "records": read,
        "records_per_s": rate,
        "rss_mib_by_minute": by_minute,
        "growth": {name: _growth(found) for name, found in by_minute.items()},
        "growth_max": GROWTH_MAX,
        "niceness": nice,
    }


def _sample(
    pids: dict[str, int], samples: dict[str, list[tuple[float, float]]], minutes: float
) -> None:
    """Take resident memory of each until the time is over; tell it every minute."""
    begun = time.monotonic()
    told = 0
    while (passed := time.monotonic() - begun) < minutes * 60:
        for name, pid in pids.items():
            samples[name].append((passed, memory_of([pid])["rss"]))
        if passed >= told * 60:
            now = ", ".join(f"{name} {found[-1][1]:,.0f}" for name, found in samples.items())
            print(f"minute {told:2}, MiB: {now}", flush=True)
            told += 1
        time.sleep(SAMPLE_S)


def _minutes(samples: list[tuple[float, float]]) -> list[float]:
    """The median of each minute."""
    found: dict[int, list[float]] = {}
    for passed, mebibytes in samples:
        found.setdefault(int(passed // 60), []).append(mebibytes)
    return [round(statistics.median(found[minute]), 1) for minute in sorted(found)]


def _growth(by_minute: list[float]) -> float | None:
    """The last minute beside the second one; None if there is nothing in between."""
    if len(by_minute) <= SETTLED_MINUTE:
        return None
    return by_minute[-1] / by_minute[SETTLED_MINUTE - 1]


def verdicts(found: dict[str, Any]) -> list[str]:
    """One line for each row."""
    lines = []
    for row in found.get("large_log", {}).get("rows", ()):
        ratio = row["ratio"]
        reached = {True: "REACHED", False: "not reached", None: "not judged"}[ratio["reached"]]
        lines.append(f"{row['row']}: {ratio['median']:.2f} (bound {ratio['bound']:.2f}): {reached}")
    for name, growth in found.get("full_load", {}).get("growth", {}).items():
        if growth is None:
            lines.append(f"memory of {name}: not judged, the run is too short")
        else:
            reached = "REACHED" if growth <= GROWTH_MAX else "not reached"
            lines.append(f"memory of {name}: last minute {growth:.3f} x minute 2: {reached}")
    return lines


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="0 leaves fetches out")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="0 leaves memory out")
    parser.add_argument("--directory", help="where data go while it runs; default: temporary")
    parser.add_argument("--out", type=Path, help=f"default of a whole run: {RESULT.name}")
    return parser.parse_args()


def main() -> None:
    """Run it."""
    arguments = parsed()
    whole = arguments.gigabytes >= GIGABYTES and arguments.minutes >= MINUTES
    out = arguments.out or (RESULT if whole else None)
    open_many_files()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rs-long-", dir=arguments.directory) as name:
        directory = Path(name)
        parts: dict[str, Callable[[RayStream], dict[str, Any]]] = {}
        if arguments.gigabytes:
            parts["large_log"] = lambda ours: large_log(ours, arguments.gigabytes)
        if arguments.minutes:
            parts["full_load"] = lambda ours: full_load(ours, directory, arguments.minutes)
        embedded.start_local_ray()
        end_in_order_when_told()
        try:
            ours = RayStream()
            ours.prepare(directory)
            ours.boot()
            ours.first_record()
            for part, measure in parts.items():
                begun = time.monotonic()
                found[part] = measure(ours) | {"seconds": round(time.monotonic() - begun, 1)}
            ours.stop()
        finally:
            ray.shutdown()
        found |= {
            "bound": f"one-sided, {CONFIDENCE:.0%}, of the median ratio, by order statistics",
            "niceness": {"at full load": found.get("full_load", {}).pop("niceness", {})},
            "machine": about_machine(directory),
            "versions": versions(),
        }
    print("\n".join(verdicts(found)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"written: {out}")


if __name__ == "__main__":
    main()
