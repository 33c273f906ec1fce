"""The judge of what a consumer group's handlers did: everything at least once, and how much twice.

Owns: the notes that handlers write, and the rules that they are held to. Refuses: knowing anything
of groups or logs; it reads what happened, whoever made it happen.

A handler notes each run of consecutive offsets before it returns. Positions are committed after it
returned, so a member that was handed its next batch had committed the one before: whoever takes a
partition over starts neither behind what was handled (a gap) nor in front of what was committed.

A handler that takes time also notes each run when it begins it. Then a batch that a kill cut short
is known: it counts as not handled, and its successor is judged by when it began, not by when it was
ready.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

HANDLED = "handled"
BEGUN = "begun"
"""Ends of the names of notes: about what is done, and about what was taken in hand."""
_NEVER = float("inf")


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


def runs_of(
    member: str, call: int, partitions: Sequence[int], offsets: Sequence[int], at_s: float
) -> list[Handled]:
    """A batch cut into runs of consecutive offsets.

    Args:
        member: whose batch it is.
        call: which call of its handler.
        partitions: of each record.
        offsets: of each record.
        at_s: now.
    """
    where, numbers = np.asarray(offsets), np.asarray(partitions)
    edges = np.flatnonzero((np.diff(where) != 1) | (np.diff(numbers) != 0)) + 1
    places = [0, *edges.tolist(), len(where)] if len(where) else []
    return [
        Handled(
            member,
            call,
            int(numbers[start]),
            int(where[start]),
            int(where[stop - 1]) + 1,
            stop - start,
            at_s,
        )
        for start, stop in pairwise(places)
    ]


def note(path: Path, runs: Iterable[Handled]) -> None:
    """Append runs to a life's notes, so that a killed process has written whole lines."""
    lines = "".join(f"{json.dumps(run)}\n" for run in runs)
    with path.open("ab", buffering=0) as file:
        file.write(lines.encode())


def read_notes(directory: Path, kind: str = HANDLED) -> list[Handled]:
    """All notes below a directory, by time; a last line that was cut off was never finished.

    Args:
        directory: where handlers note.
        kind: `HANDLED` or `BEGUN`.
    """
    found = []
    for path in sorted(directory.glob(f"*.{kind}")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        found += [Handled(*json.loads(line)) for line in whole.splitlines()]
    return sorted(found, key=lambda run: run.at_s)


@dataclass
class Verdict:
    """What was found."""

    handled: int = 0
    """Records, each as often as it was handled."""
    distinct: int = 0
    cut_short: int = 0
    """Lives that ended with a batch in hand."""
    problems: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether every rule held."""
        return not self.problems

    @property
    def repeated(self) -> int:
        """Records that were handled again."""
        return self.handled - self.distinct

    def __str__(self) -> str:
        told = (
            f"{self.distinct} records handled, {self.repeated} of them again, "
            f"{self.cut_short} batches cut short"
        )
        return "\n".join([told, *(self.problems[:20] or ["every promise was kept"])])


class _Span(NamedTuple):
    """A run, and how long it took."""

    run: Handled
    begun_s: float
    done_s: float
    """Infinite: it was cut short."""


def judge_handled(
    runs: Sequence[Handled], ends: Mapping[int, int], begun: Sequence[Handled] | None = None
) -> Verdict:
    """Hold what handlers did to what is promised.

    Args:
        runs: what was handled, by time.
        ends: for each partition where it ends; offsets begin at 0.
        begun: what was taken in hand, by time; None: handlers took no time.
    """
    verdict = Verdict(handled=sum(run.records for run in runs))
    for run in runs:
        if run.records != run.next - run.first or run.records < 1:
            verdict.problems.append(f"{run} leaves records out")
    if begun is None:
        spans = [_Span(run, run.at_s, run.at_s) for run in runs]
    else:
        spans = _spans(verdict, runs, begun)
        _judge_lives(verdict, spans)
    committed_at = _commits(spans)
    for partition, end in ends.items():
        mine = [span for span in spans if span.run.partition == partition]
        reached = _judge_partition(verdict, partition, mine, committed_at)
        verdict.distinct += reached
        if reached < end:
            verdict.problems.append(
                f"partition {partition}: {end - reached} records were never handled, from "
                f"offset {reached} on"
            )
    return verdict


def _spans(verdict: Verdict, runs: Sequence[Handled], begun: Sequence[Handled]) -> list[_Span]:
    """Every run that was begun, with the time at which it was done."""
    done = {run[:-1]: run.at_s for run in runs}
    spans = [_Span(run, run.at_s, done.pop(run[:-1], _NEVER)) for run in begun]
    verdict.problems += [f"{one} was handled and never begun" for one in done]
    return spans


def _judge_lives(verdict: Verdict, spans: Sequence[_Span]) -> None:
    """One life has one batch in hand, and only its last one may be cut short."""
    lives: dict[str, dict[int, tuple[float, float]]] = {}
    for span in spans:
        calls = lives.setdefault(span.run.member, {})
        begun_s, done_s = calls.get(span.run.call, (span.begun_s, span.done_s))
        calls[span.run.call] = (min(begun_s, span.begun_s), max(done_s, span.done_s))
    for member, calls in lives.items():
        numbers = sorted(calls)
        for call, following in pairwise(numbers):
            if calls[call][1] > calls[following][0]:
                verdict.problems.append(f"{member} began call {following} with call {call} in hand")
        verdict.cut_short += calls[numbers[-1]][1] == _NEVER


def _commits(spans: Sequence[_Span]) -> dict[tuple[str, int], float]:
    """For each call of each life when it was known to be committed: when its next call began."""
    times: dict[str, dict[int, float]] = {}
    for span in spans:
        calls = times.setdefault(span.run.member, {})
        calls[span.run.call] = min(span.begun_s, calls.get(span.run.call, span.begun_s))
    known: dict[tuple[str, int], float] = {}
    for member, calls in times.items():
        numbers = sorted(calls)
        for call, following in pairwise(numbers):
            known[member, call] = calls[following]
    return known


def _judge_partition(
    verdict: Verdict,
    partition: int,
    spans: Sequence[_Span],
    committed_at: Mapping[tuple[str, int], float],
) -> int:
    """Judge one partition's runs; returns how far it was handled without a gap."""
    reached = 0
    last: dict[str, Handled] = {}
    for _, place, is_done in _happenings(spans):
        run, begun_s, _ = spans[place]
        if is_done:
            reached = max(reached, run.next)
            continue
        before = last.get(run.member)
        goes_on = before is not None and before.next == run.first
        is_one_batch = goes_on and before is not None and before.call == run.call
        if run.first > reached and not is_one_batch:
            verdict.problems.append(
                f"partition {partition}: {run.member} began at {run.first}, and nobody had "
                f"handled {reached} to {run.first - 1}"
            )
        if not goes_on:
            bound = _committed(spans[:place], committed_at, begun_s)
            if run.first < bound:
                verdict.problems.append(
                    f"partition {partition}: {run.member} began at {run.first}, though everything "
                    f"before {bound} was committed"
                )
        last[run.member] = run
    return reached


def _happenings(spans: Sequence[_Span]) -> list[tuple[float, int, bool]]:
    """When each run was begun and done, by time; what took no time is done before the next."""
    begins = [(span.begun_s, place, False) for place, span in enumerate(spans)]
    ends = [(span.done_s, place, True) for place, span in enumerate(spans)]
    return sorted(begins + [one for one in ends if one[0] != _NEVER])


def _committed(
    spans: Sequence[_Span], committed_at: Mapping[tuple[str, int], float], at_s: float
) -> int:
    return max(
        (
            span.run.next
            for span in spans
            if committed_at.get((span.run.member, span.run.call), _NEVER) < at_s
        ),
        default=0,
    )
