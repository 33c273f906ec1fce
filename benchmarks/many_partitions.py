"""Thousands of partitions on one node: created, each written and read, restarted. Time and memory.

Run: `make bench-long` or `python benchmarks/many_partitions.py [PARTITIONS]`. Writes
`benchmarks/results/many_partitions.json` with the machine and versions.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import ray

import ray_stream
from ray_stream.actors import spawning

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 300.0


def resident_mib() -> dict[str, float]:
    """Resident memory of each of our actors, by name without its unique part."""
    sizes: dict[str, float] = {}
    broker = next(n for n in spawning.living_actors("default") if "/broker/" in n)
    actor = spawning.find(broker)
    assert actor is not None
    for name, pid in ray.get(actor.pids.remote()).items():
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        kib = int(status.split("VmRSS:")[1].split()[0])
        sizes[name.split("/")[1] + ":" + name.rsplit("/", 1)[1].split(".")[0][:8]] = kib / 1024
    return sizes


def main(partitions: int) -> dict[str, object]:
    """Run it; returns the figures."""
    figures: dict[str, object] = {"partitions": partitions}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        figures[f"{name}_s"] = round(time.monotonic() - begun, 2)
        print(f"{name:28} {figures[f'{name}_s']:8} s", flush=True)

    with tempfile.TemporaryDirectory(prefix="rs-") as data_dir:
        with timed("start_empty"):
            cluster = ray_stream.start(data_dir=data_dir)
        with timed("create"):
            cluster._admin.create_topic("many", partitions=partitions, timeout=TIMEOUT_S)
        with timed("first_record_to_each"), cluster.producer() as producer:
            for number in range(partitions):
                producer.send("many", b"record of %d" % number, partition=number)
        with timed("read_each"):
            check(cluster.read("many"), partitions)
        figures["resident_mib"] = resident_mib()
        with timed("stop"):
            cluster.close()
        with timed("start_again"):
            cluster = ray_stream.start(data_dir=data_dir)
        with timed("read_each_again"):
            check(cluster.read("many"), partitions)
        with timed("second_record_to_each"), cluster.producer() as producer:
            for number in range(partitions):
                producer.send("many", b"more of %d" % number, partition=number)
        figures["resident_mib_after_restart"] = resident_mib()
        cluster.close()
    return figures


def check(table: pa.Table, partitions: int) -> None:
    """Every partition has exactly its record."""
    seen = dict(zip(table["partition"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert seen == {number: b"record of %d" % number for number in range(partitions)}


if __name__ == "__main__":
    figures = main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
    figures |= {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_partitions.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
