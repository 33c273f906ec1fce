"""Every crash of a recorded life, and what a recovered log owes its users then."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ray_stream.errors import StorageOfflineError
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.log.repair import repair_partition
from ray_stream.testing.memory import MemoryStorage
from tests.crash.ledger import Ledger
from tests.crash.runs import DIRECTORY, NOW_MS, Found, Run, make_batch, open_log, read_all


class PromiseBrokenError(Exception):
    """What a recovered log did not keep."""


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise PromiseBrokenError(what)


def crash_points(run: Run) -> Iterator[tuple[int, MemoryStorage]]:
    """The machine after each operation of the life."""
    disk = run.before.copy()
    for operation in run.storage.disk.operations[len(disk.operations) :]:
        disk.apply(operation)
        yield disk.sequence, MemoryStorage(disk)


def state_of(storage: MemoryStorage) -> int:
    """A number for what is on the disk, to look at equal states once."""
    disk = storage.disk
    names = tuple(
        (number, tuple(sorted(directory.durable.items())))
        for number, directory in disk.directories.items()
    )
    files = tuple((number, bytes(file.durable)) for number, file in disk.files.items())
    return hash((names, files))


def check_recovered(
    storage: MemoryStorage, ledger: Ledger, crash_at: int, *, boot: str, killed: bool = False
) -> tuple[PartitionLog, list[Found]]:
    """Open the log after a crash, and hold it to its promises."""
    log = open_log(storage, boot=boot)
    expect(not log.offline, f"offline after a mere crash: {log.offline}")
    expect(not log.recovery.quarantined, f"quarantined by a crash: {log.recovery.quarantined}")
    least, most = ledger.log_starts(crash_at)
    expect(least <= log.start_offset <= most, f"log start {log.start_offset}")
    expect(log.leader_epoch >= ledger.leader_epoch(crash_at), f"epoch {log.leader_epoch} forgotten")
    expect(log.readable_end == log.written_end, "recovery ends with everything synced")
    found = read_all(log)
    _check_content(log, found, ledger, crash_at, killed=killed)
    _check_producers(log, found, ledger, crash_at)
    return log, found


def _check_content(
    log: PartitionLog, found: list[Found], ledger: Ledger, crash_at: int, *, killed: bool
) -> None:
    there = {(one.key, one.payload) for one in found}
    for entry in ledger.required(crash_at, killed=killed):
        if entry.next_offset > log.start_offset:
            expect((entry.key, entry.payload) in there, f"lost: offset {entry.base_offset}")
    allowed = ledger.allowed(crash_at)
    due = None
    for one in found:
        known = allowed.get(one.key)
        offset = one.header.base_offset
        expect(known is not None and known.payload == one.payload, f"invented: offset {offset}")
        expect(due is None or offset == due, f"{offset} follows where {due} is due")
        due = one.header.next_offset
    expect(due is None or due == log.written_end, "the log ends behind its last batch")


def _check_producers(log: PartitionLog, found: list[Found], ledger: Ledger, crash_at: int) -> None:
    """A retry of what is there is answered and not written again; the next batch is accepted."""
    if log.recovery.needs_new_epoch or log.leader_epoch < 0:
        log.begin_epoch(log.leader_epoch + 1)
    sent = ledger.allowed(crash_at)
    end = log.written_end
    for producer_id in (1, 2):
        mine = [sent[one.key] for one in found if one.header.producer_id == producer_id]
        for entry in mine[-5:]:
            answer = _append(log, entry.sent)
            expect(
                isinstance(answer, Appended)
                and answer.duplicate
                and answer.base_offset == entry.base_offset,
                f"a retry of what stands at {entry.base_offset} is answered with {answer!r}",
            )
    expect(log.written_end == end, "a duplicate was written")
    for producer_id in (1, 2):
        mine = [sent[one.key] for one in found if one.header.producer_id == producer_id]
        if mine:
            _append_new(log, ledger, crash_at, (producer_id, 0, mine[-1].next_sequence))
    _append_new(log, ledger, crash_at, (-1, -1, -1))


def _append_new(
    log: PartitionLog, ledger: Ledger, crash_at: int, producer: tuple[int, int, int]
) -> None:
    offset, epoch = log.written_end, log.leader_epoch
    batch = make_batch("new", 1, 10, producer)
    answer = _append(log, batch)
    accepted = isinstance(answer, Appended) and answer.base_offset == offset
    expect(accepted, f"an append at {offset} after recovery: {answer!r}")
    for entry in ledger.written(crash_at):
        expect(
            entry.header.leader_epoch != epoch
            or not entry.base_offset <= offset < entry.next_offset,
            f"offset {offset} of epoch {epoch} has two contents",
        )


def _append(log: PartitionLog, batch: bytes) -> object:
    return log.append([batch], leader_epoch=log.leader_epoch, now_ms=NOW_MS)[0]


def sync_and_read(log: PartitionLog, before: list[Found]) -> None:
    """What was appended to the recovered log becomes durable and can be read behind the rest."""
    job = log.sync_job()
    if job is not None:
        job.run()
        log.synced(job)
    expect(log.readable_end == log.written_end, "synced, and not readable")
    expect(read_all(log)[: len(before)] == before, "appending changed what was there")


class Check(Protocol):
    """Opens a log after one crash and judges it."""

    def __call__(
        self, run: Run, crash_at: int, state: MemoryStorage, *, boot: str, killed: bool
    ) -> None: ...


@dataclass(slots=True)
class Explored:
    """How much was looked at."""

    crash_points: int = 0
    states: int = 0
    distinct: int = 0


def explore(
    run: Run,
    rng: random.Random,
    *,
    all_up_to: int = 4,
    samples: int = 6,
    begin_at: int = 0,
    check: Check | None = None,
) -> Explored:
    """Every crash point: the process is killed; the power goes, with every combination of fates
    while they are few, else samples.
    """
    explored = Explored()
    for crash_at, state, boot, killed in crashes(run, rng, explored, all_up_to, samples):
        if crash_at >= begin_at:
            (check or check_at)(run, crash_at, state, boot=boot, killed=killed)
    return explored


def crashes(
    run: Run, rng: random.Random, explored: Explored, all_up_to: int, samples: int
) -> Iterator[tuple[int, MemoryStorage, str, bool]]:
    """(operations done, the machine afterwards, its boot, whether only the process died)."""
    seen: dict[tuple[int, int], None] = {}
    for crash_at, machine in crash_points(run):
        explored.crash_points += 1
        explored.states += 1
        explored.distinct += 1
        yield crash_at, machine.killed(), run.boot, True
        promised = len(run.ledger.required(crash_at, killed=False))
        for state in machine.crash_states(rng, all_up_to=all_up_to, samples=samples):
            explored.states += 1
            key = (state_of(state), promised)
            if key not in seen:
                seen[key] = None
                explored.distinct += 1
                yield crash_at, state, f"{run.boot}+", False


def explore_second_lives(
    run: Run, rng: random.Random, *, share: float, steps: int, samples: int = 2
) -> Explored:
    """Crashes while a crash is recovered from, and shortly afterwards.

    Args:
        share: how many of the first crashes are gone on from.
        steps: how long the log lives on after its recovery.
    """
    explored = Explored()
    for crash_at, state, boot, _ in crashes(run, rng, Explored(), 2, samples):
        if rng.random() < share and state.is_directory(DIRECTORY):
            second = Run(state, run.options, rng, boot=boot)
            with noted(run, crash_at):
                second.recover(run.ledger, crash_at)
                second.live(steps)
                one = explore(second, rng, all_up_to=2, samples=samples)
            explored.crash_points += one.crash_points
            explored.states += one.states
            explored.distinct += one.distinct
    return explored


def check_offline_at(
    run: Run, crash_at: int, state: MemoryStorage, *, boot: str, killed: bool
) -> None:
    """As `check_at`, where a sync has failed: what was durable is served, the rest once repaired.

    The page cache shows what is not on the disk: that is lost even if only the process dies.
    """
    del killed
    log = open_log(state, boot=boot)
    if log.recovery.quarantined:
        # Killed before it could note the failed sync, so nobody knows any more that what is gone
        # was never acknowledged: it is called damaged, which is safe.
        with noted(run, crash_at):
            _check_quarantined(log, run.ledger, crash_at)
        return
    if not log.offline:
        log.close()
        check_at(run, crash_at, state, boot=boot, killed=False)
        return
    with noted(run, crash_at):
        expect(log.sync_job() is None, "an offline log promises nothing more")
        answer = _append(log, make_batch("new", 1, 10, (-1, -1, -1)))
        expect(isinstance(answer, StorageOfflineError), f"an append while offline: {answer!r}")
        _check_content(log, read_all(log), run.ledger, crash_at, killed=False)
        report = repair_partition(state, DIRECTORY, log.options, boot_id=boot, now_ms=NOW_MS)
        expect(not report.lost, f"repair gave up what was durable: {report.lost}")
    check_at(run, crash_at, state, boot=boot, killed=False)


def _check_quarantined(log: PartitionLog, ledger: Ledger, crash_at: int) -> None:
    for entry in ledger.required(crash_at, killed=False):
        for damaged in log.recovery.quarantined:
            expect(
                entry.next_offset <= damaged.first_offset
                or damaged.next_offset <= entry.base_offset,
                f"called damaged, and it was durable: offset {entry.base_offset}",
            )


def check_at(run: Run, crash_at: int, state: MemoryStorage, *, boot: str, killed: bool) -> None:
    with noted(run, crash_at):
        if not state.is_directory(DIRECTORY):
            expect(crash_at < run.created_at, "the whole log is gone")
            return
        log, found = check_recovered(state, run.ledger, crash_at, boot=boot, killed=killed)
        sync_and_read(log, found)


@contextmanager
def noted(run: Run, crash_at: int) -> Iterator[None]:
    """Say which crash it was."""
    try:
        yield
    except Exception as error:
        last = run.storage.disk.operations[max(len(run.before.operations), crash_at - 8) : crash_at]
        lines = [f"{type(one).__name__} {str(one)[:120]}" for one in last]
        error.add_note("\n  ".join([f"crash after operation {crash_at}; the last ones:", *lines]))
        raise
