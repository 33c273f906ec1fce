"""What else goes wrong: syncs that lose data, processes that stop for a while.

Owns: drawing these faults from the seed, and the operator who repairs what went offline. Refuses:
judging (`testing.simulation`).

A failed sync takes a log offline until it is repaired, so only some seeds have these: in the others
every partition must come back by itself. Nothing of what was acknowledged may be lost either way.
"""

import random

from ray_stream.testing.scheduler import Event, Process, Scheduler
from ray_stream.testing.simulated_cluster import SimulatedCluster

PAUSE_MS_MIN, PAUSE_MS_MAX = 200, 1_200
STOPPED_MS_MAX = 4_000
SYNCS_AHEAD_MAX = 6


class Saboteur:
    """Draws faults until it is stopped."""

    def __init__(self, scheduler: Scheduler, cluster: SimulatedCluster, rng: random.Random) -> None:
        """Args: rng: draws what and when, and what a failed sync loses."""
        self._scheduler = scheduler
        self._cluster = cluster
        self._rng = rng
        self._next: Event | None = None
        self._stopped: dict[Process, None] = {}
        self.faults = 0

    def start(self) -> None:
        """Go on until `stop`."""
        wait_ms = self._rng.randint(PAUSE_MS_MIN, PAUSE_MS_MAX)
        self._next = self._scheduler.after(wait_ms, self._strike)

    def stop(self) -> None:
        """No more faults: who was stopped goes on, and what is offline is repaired."""
        if self._next is not None:
            self._next.cancel()
        for process in list(self._stopped):
            self._resume(process)
        for node in self._cluster.nodes:
            node.storage.faults.heal()
        self._repair()

    def _repair(self) -> None:
        self._cluster.repair()

    def keep_repairing(self, every_ms: int) -> None:
        """A log that is still locked cannot be repaired yet, nor one that is not marked yet."""
        self._cluster.repair()
        self._scheduler.after(every_ms, lambda: self.keep_repairing(every_ms))

    def _strike(self) -> None:
        chosen = self._rng.choice(
            [self._fail_sync, self._fail_sync, self._stop_one, self._stop_one, self._repair, None]
        )
        if chosen is not None:
            self.faults += 1
            chosen()
        self.start()

    def _fail_sync(self) -> None:
        faults = self._rng.choice(self._cluster.nodes).storage.faults
        faults.lost_by_failed_sync = self._rng
        # Mostly of a segment; sometimes of whatever comes: checkpoints, names, identities.
        path_part = self._rng.choice([".log", ".log", ""])
        faults.fail_sync(self._rng.randint(1, SYNCS_AHEAD_MAX), path_part)

    def _stop_one(self) -> None:
        processes = [
            process
            for node in self._cluster.nodes
            for process in self._cluster.processes_on(node)
            if not process.paused
        ]
        if not processes:
            return
        process = self._rng.choice(processes)
        process.paused = True
        self._stopped[process] = None
        end = self._rng.choice([self._resume, self._resume, self._end])
        self._scheduler.after(self._rng.randint(PAUSE_MS_MIN, STOPPED_MS_MAX), lambda: end(process))

    def _resume(self, process: Process) -> None:
        self._stopped.pop(process, None)
        self._scheduler.resume(process)

    def _end(self, process: Process) -> None:
        """Silent for too long: its watchers kill it."""
        self._stopped.pop(process, None)
        self._cluster.kill(process)
