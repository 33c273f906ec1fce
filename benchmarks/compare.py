"""ray_stream beside Apache Kafka and its C client, case by case, interleaved in one run.

Run: `make bench`, or `python benchmarks/compare.py [--repetitions 5] [--cases send open]`. A whole
run writes `benchmarks/results/compare.json`: every figure, medians and ranges, ratios with their
spread, the machine, the niceness of every process, versions, settings. A part of it (`--cases`,
`--quick`, fewer repetitions) only prints, unless `--out` says where to write. A peer that is
missing is reported as not measured.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent))

import cases
import kafka_peer
import limits
import ray
import redis_peer
from cases import Case, Scale
from crew import Crew
from figures import CONFIDENCE, Row, spread
from kafka_peer import Kafka
from machine import about_machine, end_in_order_when_told, niceness, open_many_files, versions
from peers import BATCH_BYTES, CALL_BYTES, LINGER_MS, PARTITIONS, Peer, RayStream
from redis_peer import Redis

from ray_stream.cluster import embedded

RESULT = Path(__file__).parent / "results" / "compare.json"
REPETITIONS = 5
GUEST_REPETITIONS = 2
"""Of peers that no target names; they are slow, and a whole run is to end within 20 minutes."""
STAGES = ("alone", "crews", "fresh")


@dataclass
class Session:
    """One run of the benchmark: what was asked for, and what has come of it."""

    arguments: argparse.Namespace
    directory: Path
    kafka_missing: str
    done: list[Case] = field(default_factory=list)
    limits: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    niceness: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> Scale:
        """How much work."""
        return Scale(50 if self.arguments.quick else 1)

    def wanted(self, found: Iterator[Case]) -> list[Case]:
        """Those that were asked for."""
        texts = self.arguments.cases
        return [case for case in found if not texts or any(one in case.name for one in texts)]

    def measure(self, stage: str, wanted: list[Case]) -> None:
        """Every case by every contestant in turns, so that a drift of the machine meets all."""
        begun = time.monotonic()
        self.niceness[stage] = niceness()
        for repetition in range(self.arguments.repetitions):
            self.limits.append(limits.measure(self.directory))
            for case in wanted:
                turns = list(case.runs.items())
                for contestant, run in turns if repetition % 2 == 0 else turns[::-1]:
                    if repetition < GUEST_REPETITIONS or contestant not in case.guests:
                        self._once(case, contestant, run)
        self.done += wanted
        self.seconds[stage] = round(time.monotonic() - begun, 1)

    def _once(self, case: Case, contestant: str, run: Callable[[], list[float]]) -> None:
        try:
            figures = run()
        except Exception as error:  # noqa: BLE001 - the other rows are worth their time
            traceback.print_exc()
            self.failures.append(f"{case.name}, {contestant}: {type(error).__name__}: {error}")
            del case.runs[contestant]
            for row in case.rows:
                row.figures.pop(contestant, None)
            return
        for row, figure in zip(case.rows, figures, strict=True):
            row.add(contestant, figure)
            print(f"{row.name:62} {contestant:18} {figure:14,.1f} {row.unit}", flush=True)


class Server(Protocol):
    """What can be brought up and ended."""

    name: str

    def prepare(self, data_dir: Path) -> None:
        """What comes before the first start."""

    def boot(self) -> None:
        """Bring it up."""

    def first_record(self) -> None:
        """Have a record acknowledged."""

    def stop(self) -> None:
        """End it."""


@contextmanager
def running(peers: Sequence[Server], directory: Path) -> Iterator[None]:
    """Peers that are up."""
    with ExitStack() as stack:
        for peer in peers:
            peer.prepare(directory / peer.name)
            stack.callback(peer.stop)
            peer.boot()
            peer.first_record()
        yield


def warm(peer: Peer, scale: Scale) -> None:
    """Work that is not measured: a Java process compiles itself while it works."""
    count = scale.of(1_000_000)
    for fsync in (False, True):
        with cases.topic_of(peer, fsync=fsync) as topic:
            peer.send_each(topic, b"x" * cases.RECORD, count, None)
            peer.send_all(topic, b"x" * cases.RECORD, count)
            peer.read_each(topic, count)
            peer.read_all(topic, count)
            peer.round_trips(topic, scale.of(3_000, 50))


def standing(session: Session, stages: list[str]) -> None:
    """The stages in which all peers stand side by side."""
    ours = RayStream()
    kafka = None if session.kafka_missing else Kafka()
    peers: list[Peer] = [ours] if kafka is None else [ours, kafka]
    with running(peers, session.directory):
        for peer in peers:
            warm(peer, session.scale)
        if "alone" in stages:
            alone(session, ours, kafka, peers)
        if "crews" in stages and session.wanted(cases.crew_cases([], session.scale)):
            with ExitStack() as stack:
                crews = []
                for peer in peers:
                    crews.append(Crew(peer))
                    stack.callback(crews[-1].end)
                session.measure("crews", session.wanted(cases.crew_cases(crews, session.scale)))


def alone(session: Session, ours: RayStream, kafka: Kafka | None, peers: list[Peer]) -> None:
    """Clients in this process, one after the other."""
    found = [
        *cases.send_cases(peers, session.scale),
        *cases.read_cases(peers, session.scale),
        *cases.latency_cases(peers, session.scale),
        *cases.keyed_cases(ours, session.scale),
    ]
    redis = None if session.arguments.only_kafka or redis_peer.why_not() else Redis()
    with running([redis] if redis else [], session.directory):
        if not session.arguments.only_kafka:
            cases.beside_others(found, kafka, redis, session.scale)
        session.measure("alone", session.wanted(iter(found)))


def fresh(session: Session, *, fsync: bool) -> None:
    """The stage in which each repetition starts nodes of its own."""
    with_kafka = not session.kafka_missing
    found = cases.fresh_cases(session.directory, with_kafka, session.scale, fsync=fsync)
    if wanted := session.wanted(found):
        session.measure("fresh, fsync" if fsync else "fresh", wanted)


def told(session: Session) -> dict[str, Any]:
    """Everything that goes into the file of results."""
    reasons = {"kafka": session.kafka_missing, "redis streams": redis_peer.why_not()}
    missing = {name: why for name, why in reasons.items() if why}
    return {
        "repetitions": session.arguments.repetitions,
        "quick": session.arguments.quick,
        "bound": f"one-sided, {CONFIDENCE:.0%}, of the median ratio, by order statistics",
        "not_measured": missing,
        "failures": session.failures,
        "rows": [row.summary() for case in session.done for row in case.rows if row.figures],
        "limits": {
            name: spread([one[name] for one in session.limits]) for name in session.limits[0]
        }
        if session.limits
        else {},
        "machine": about_machine(session.directory),
        "niceness": session.niceness,
        "versions": versions(),
        "seconds": session.seconds,
        "settings": {
            "ray_stream": {
                "linger_ms": LINGER_MS,
                "batch_size": BATCH_BYTES,
                "bytes a call of send_batch": CALL_BYTES,
                "producer of single records": {"linger_ms": 0},
            },
            "kafka": kafka_peer.TUNING,
            "partitions": PARTITIONS,
            "keys": cases.KEYS,
        },
    }


def shown(row: Row) -> str:
    """A row of the summary."""
    found = row.summary()
    ratio: Any = found.get("ratio")
    parts = [f"{name} {statistics.median(each):,.1f}" for name, each in row.figures.items()]
    text = f"{row.name} ({row.unit}): {', '.join(parts)}"
    if ratio is None:
        return text
    low, high = ratio["range"]
    bound = "no bound" if ratio["bound"] is None else f"bound {ratio['bound']:.2f}"
    verdict = {True: "REACHED", False: "not reached", None: "not judged"}[ratio["reached"]]
    aim = f", target {row.target}: {verdict}" if row.target is not None else ""
    return f"{text}; ratio {ratio['median']:.2f} ({low:.2f} to {high:.2f}, {bound}){aim}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument(
        "--cases", nargs="+", default=[], help="only those with this in their names"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="alone, crews, fresh")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the work")
    parser.add_argument("--only-kafka", action="store_true", help="leave the other peers out")
    parser.add_argument("--many-fsync", action="store_true", help="many partitions fsynced, too")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--directory", help="where data go while it runs; default: temporary")
    parser.add_argument("--out", type=Path, help=f"default of a whole run: {RESULT.name}")
    return parser.parse_args()


def names() -> Iterator[str]:
    """Of every case."""
    ours, scale = RayStream(), Scale()
    for found in (
        cases.send_cases([ours], scale),
        cases.read_cases([ours], scale),
        cases.latency_cases([ours], scale),
        cases.keyed_cases(ours, scale),
        cases.crew_cases([], scale),
        cases.fresh_cases(Path(), False, scale, fsync=False),
        cases.fresh_cases(Path(), False, scale, fsync=True),
    ):
        yield from (case.name for case in found)


def run(session: Session) -> None:
    """All stages, on a Ray of their own."""
    stages = [one for one in STAGES if one in session.arguments.stages.split(",")]
    embedded.start_local_ray()
    end_in_order_when_told()
    try:
        if {"alone", "crews"} & set(stages) and session.wanted(_standing_cases(session)):
            standing(session, stages)
        if "fresh" in stages:
            fresh(session, fsync=False)
            if session.arguments.many_fsync:
                fresh(session, fsync=True)
    finally:
        ray.shutdown()


def _standing_cases(session: Session) -> Iterator[Case]:
    """Without anybody who would run them: only their names."""
    ours = RayStream()
    yield from cases.send_cases([], session.scale)
    yield from cases.read_cases([], session.scale)
    yield from cases.latency_cases([], session.scale)
    yield from cases.keyed_cases(ours, session.scale)
    yield from cases.crew_cases([], session.scale)


def main() -> int:
    """Run it."""
    arguments = parsed()
    if arguments.list:
        print("\n".join(names()))
        return 0
    missing = kafka_peer.why_not()
    if missing:
        print(f"kafka: not measured: {missing}")
    else:
        kafka_peer.fetch_jars()
    open_many_files()
    whole = not (arguments.quick or arguments.cases or arguments.stages != ",".join(STAGES))
    out = arguments.out or (RESULT if whole and arguments.repetitions >= REPETITIONS else None)
    with tempfile.TemporaryDirectory(prefix="rs-bench-", dir=arguments.directory) as directory:
        session = Session(arguments, Path(directory), missing)
        run(session)
        found = told(session)
    for case in session.done:
        for row in case.rows:
            if row.figures:
                print(shown(row))
    for failure in session.failures:
        print(f"FAILED: {failure}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2, default=os.fspath) + "\n", encoding="utf-8")
        print(f"written: {out}")
    return 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
