"""A log keeps its promises through every crash of its life, and of its recoveries."""

import random
from collections.abc import Callable

import pytest

from ray_stream.log.partition_log import PartitionLog
from ray_stream.log.sync import SyncJob
from ray_stream.testing.memory import MemoryStorage
from tests.crash.explorer import (
    PromiseBrokenError,
    check_offline_at,
    explore,
    explore_second_lives,
)
from tests.crash.runs import FSYNC, REPLICATED, lived

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_acknowledged_survives_every_crash(seed: int) -> None:
    explored = explore(lived(seed, 22, FSYNC), random.Random(seed))
    assert explored.crash_points > 50
    assert explored.states > 500


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_replicated_topic_wrote_survives_every_killed_process(seed: int) -> None:
    """And what it synced (by itself, in the background) survives the power."""
    explored = explore(lived(seed, 22, REPLICATED), random.Random(seed), all_up_to=2, samples=2)
    assert explored.crash_points > 50


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_while_a_crash_is_recovered_from_loses_nothing_more(seed: int) -> None:
    run = lived(seed, 14, FSYNC)
    explored = explore_second_lives(run, random.Random(seed), share=0.02, steps=2)
    assert explored.states > 100


@pytest.mark.parametrize("seed", SEEDS)
def test_a_failed_sync_loses_nothing_that_was_acknowledged_whatever_happens_next(seed: int) -> None:
    run = lived(seed, 12, FSYNC, fails_at_last=True)
    acknowledged = run.log.synced_end
    assert run.log.offline
    assert run.log.readable_end == acknowledged
    begin_at = run.now - 12
    explored = explore(run, random.Random(seed), begin_at=begin_at, check=check_offline_at)
    assert explored.states > 100


# --- the explorer itself -------------------------------------------------------------------------


class NamesNeverSynced(MemoryStorage):
    """Believes that a file's sync covers its name."""

    def sync_directory(self, path: str) -> None:
        del path


def acknowledged_early(patch: pytest.MonkeyPatch) -> None:
    """Says that a round ended before it began."""

    def run(job: SyncJob) -> None:
        del job

    patch.setattr(SyncJob, "run", run)


def sealed_segment_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Syncs the segment that is written to, and not the one before it."""
    honest = SyncJob.__init__

    def init(
        job: SyncJob, storage: object, paths: tuple[str, ...], *rest: object, **more: object
    ) -> None:
        honest(job, storage, paths[-1:], *rest, **more)  # type: ignore[arg-type]

    patch.setattr(SyncJob, "__init__", init)


def epoch_of_the_lost_used_again(patch: pytest.MonkeyPatch) -> None:
    """Goes on in the old leader epoch where bytes were lost."""
    honest = PartitionLog.open.__func__  # type: ignore[attr-defined]

    def opened(kind: type[PartitionLog], /, *rest: object, **more: object) -> PartitionLog:
        log: PartitionLog = honest(kind, *rest, **more)
        log._log.epoch_needed = False
        object.__setattr__(log.recovery, "needs_new_epoch", False)
        return log

    patch.setattr(PartitionLog, "open", classmethod(opened))


def producers_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Begins with no producers where it should replay them."""
    honest = PartitionLog.open.__func__  # type: ignore[attr-defined]

    def opened(kind: type[PartitionLog], /, *rest: object, **more: object) -> PartitionLog:
        log: PartitionLog = honest(kind, *rest, **more)
        log._log.producers = type(log._log.producers)()
        return log

    patch.setattr(PartitionLog, "open", classmethod(opened))


def find_something(kind: type[MemoryStorage] = MemoryStorage) -> None:
    for seed in SEEDS:
        explore(lived(seed, 22, FSYNC, kind), random.Random(seed))


def test_the_explorer_finds_names_that_are_never_synced() -> None:
    with pytest.raises(PromiseBrokenError, match=r"gone|lost"):
        find_something(NamesNeverSynced)


@pytest.mark.parametrize(
    ("plant", "symptom"),
    [
        (acknowledged_early, "lost: offset"),
        (sealed_segment_forgotten, "lost: offset"),
        (epoch_of_the_lost_used_again, "has two contents"),
        (producers_forgotten, "a retry of what stands"),
    ],
)
def test_the_explorer_finds_a_planted_bug(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], symptom: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(PromiseBrokenError, match=symptom):
        find_something()
