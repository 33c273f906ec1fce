"""The judge of what a consumer group's handlers did: everything at least once, and how much twice.

Owns: the notes that handlers write, and the rules that they are held to. Refuses: knowing anything
of groups or logs; it reads what happened, whoever made it happen.

A handler notes each run of consecutive offsets before it returns. Positions are committed after it
returned, so a member that was handed its next batch had committed the one before: whoever takes a
partition over starts neither behind what was handled (a gap) nor in front of what was committed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Handled(NamedTuple):
    """One run of consecutive offsets that a handler was given."""

    member: str
    """One life of one member: another one after each restart."""
    call: int
    """Counts the handler's calls in that life."""
    partition: int
    first: int
    next: int
    """Behind the last one."""
    records: int
    at_s: float
    """When, on a clock that all members share."""


def note(path: Path, runs: Iterable[Handled]) -> None:
    """Append runs to a life's notes, so that a killed process has written whole lines."""
    lines = "".join(f"{json.dumps(run)}\n" for run in runs)
    with path.open("ab", buffering=0) as file:
        file.write(lines.encode())


def read_notes(directory: Path) -> list[Handled]:
    """All notes below a directory, by time; a last line that was cut off was never finished."""
    found = []
    for path in sorted(directory.glob("*.handled")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        found += [Handled(*json.loads(line)) for line in whole.splitlines()]
    return sorted(found, key=lambda run: run.at_s)


@dataclass
class Verdict:
    """What was found."""

    handled: int = 0
    """Records, each as often as it was handled."""
    distinct: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether every rule held."""
        return not self.problems

    def __str__(self) -> str:
        told = f"{self.distinct} records handled, {self.handled - self.distinct} of them again"
        return "\n".join([told, *(self.problems[:20] or ["every promise was kept"])])


def judge_handled(runs: Sequence[Handled], ends: Mapping[int, int]) -> Verdict:
    """Hold what handlers did to what is promised.

    Args:
        runs: by time.
        ends: for each partition where it ends; offsets begin at 0.
    """
    verdict = Verdict(handled=sum(run.records for run in runs))
    for run in runs:
        if run.records != run.next - run.first or run.records < 1:
            verdict.problems.append(f"{run} leaves records out")
    committed_at = _commits(runs)
    for partition, end in ends.items():
        mine = [run for run in runs if run.partition == partition]
        reached = _judge_partition(verdict, partition, mine, committed_at)
        verdict.distinct += reached
        if reached < end:
            verdict.problems.append(
                f"partition {partition}: {end - reached} records were never handled, from "
                f"offset {reached} on"
            )
    return verdict


def _commits(runs: Sequence[Handled]) -> dict[tuple[str, int], float]:
    """For each call of each life when it was known to be committed: at its next call."""
    times: dict[str, dict[int, float]] = {}
    for run in runs:
        calls = times.setdefault(run.member, {})
        calls[run.call] = min(run.at_s, calls.get(run.call, run.at_s))
    known: dict[tuple[str, int], float] = {}
    for member, calls in times.items():
        numbers = sorted(calls)
        for call, following in pairwise(numbers):
            known[member, call] = calls[following]
    return known


def _judge_partition(
    verdict: Verdict,
    partition: int,
    runs: Sequence[Handled],
    committed_at: Mapping[tuple[str, int], float],
) -> int:
    """Judge one partition's runs; returns how far it was handled without a gap."""
    reached = 0
    last: dict[str, Handled] = {}
    for place, run in enumerate(runs):
        before = last.get(run.member)
        goes_on = before is not None and before.next == run.first
        if run.first > reached:
            verdict.problems.append(
                f"partition {partition}: {run.member} began at {run.first}, and nobody had "
                f"handled {reached} to {run.first - 1}"
            )
        if not goes_on:
            bound = _committed(runs[:place], committed_at, run.at_s)
            if run.first < bound:
                verdict.problems.append(
                    f"partition {partition}: {run.member} began at {run.first}, though everything "
                    f"before {bound} was committed"
                )
        last[run.member] = run
        reached = max(reached, run.next)
    return reached


def _committed(
    runs: Sequence[Handled], committed_at: Mapping[tuple[str, int], float], at_s: float
) -> int:
    return max(
        (run.next for run in runs if committed_at.get((run.member, run.call), float("inf")) < at_s),
        default=0,
    )
