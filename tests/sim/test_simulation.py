"""Seeds: real machines, real hosts, real client cores, and everything that may go wrong.

A seed that ever failed stays in `REGRESSIONS`.
"""

import os
import subprocess
import sys

import pytest

from ray_stream.actors.partition_host import Hosted, PartitionHost
from ray_stream.errors import RayStreamError, StorageError
from ray_stream.log.partition_log import SyncJob
from ray_stream.rpc.messages import FetchPartition, ListOffsetsPartition, ProducePartition
from ray_stream.testing.simulation import Report, Simulation, run

SEEDS = 200
CHUNK = 10
REGRESSIONS = {
    4: "staged batches were appended under a newer leader epoch",
    6: "staged batches were appended under a newer leader epoch",
    10: "staged batches were appended under a newer leader epoch",
    25: "a failed sync of the metadata log was not recorded: its successor took it for damage",
    80: "a full disk ended the broker's session, and nothing began another",
    119: "a lost report left a served partition unknown to the controller for good",
    0: "a late copy of a dead broker's registration fenced the living one, which never gave way",
}


@pytest.mark.sim
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    failed = [report for report in map(run, range(first, first + CHUNK)) if not report.passed]
    assert not failed, "\n".join(
        f"{report}\nreplay: ray-stream sim --seed {report.seed}" for report in failed
    )


@pytest.mark.sim
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    assert run(seed).passed, REGRESSIONS[seed]


@pytest.mark.sim
def test_one_seed_is_one_run_whatever_the_hashes_of_strings() -> None:
    program = "from ray_stream.testing.simulation import run; print(run(17).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


class EagerHost(PartitionHost):
    """Planted: answers when written, and shows what is written, before any sync."""

    def _advance(self, hosted: Hosted) -> None:
        due, hosted.waiting = hosted.waiting, []
        for one in due:
            one.pending.settle(one.position, one.result)
        super()._advance(hosted)


class UnfencedHost(PartitionHost):
    """Planted: takes requests of any leader epoch."""

    def _leader(
        self, address: ProducePartition | FetchPartition | ListOffsetsPartition
    ) -> Hosted | RayStreamError:
        hosted = self.partitions.get((address.topic_id, address.partition))
        if hosted is not None and hosted.leading:
            return hosted
        return super()._leader(address)


class ForgivingHost(PartitionHost):
    """Planted: takes a failed sync for one that succeeded."""

    def _sync_ended(self, hosted: Hosted, job: SyncJob, error: StorageError | None) -> None:
        del error
        super()._sync_ended(hosted, job, None)


class MixingHost(PartitionHost):
    """Planted: appends in a new leader epoch what was taken in under the old one."""

    def refuse_staged(self, hosted: Hosted) -> None:
        del hosted


def first_failure(make_host: type[PartitionHost]) -> Report:
    runs = (Simulation(seed, make_host=make_host).run() for seed in range(SEEDS))
    found = next((report for report in runs if not report.passed), None)
    assert found is not None, f"{make_host.__name__} passed {SEEDS} seeds"
    return found


@pytest.mark.sim
@pytest.mark.parametrize("make_host", [EagerHost, UnfencedHost, MixingHost, ForgivingHost])
def test_a_planted_bug_is_found_and_replayed_from_its_seed(make_host: type[PartitionHost]) -> None:
    found = first_failure(make_host)
    again = Simulation(found.seed, make_host=make_host).run()
    assert (again.digest, again.violations) == (found.digest, found.violations)
    assert run(found.seed).passed
