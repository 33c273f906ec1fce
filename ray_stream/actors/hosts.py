"""The partition actors of one node, as their broker starts, watches and ends them.

Owns: processes: their start, adoption, heartbeats and end. Refuses: what they serve
(`metadata.hosting`).

A process that is given up is killed by its id as well, so that its locks are free and nothing of it
writes on when it is continued.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from ray_stream.actors import spawning
from ray_stream.actors.coordinator import GroupCoordinatorActorClass
from ray_stream.actors.heartbeat import until_dead
from ray_stream.actors.partition import PartitionActorClass
from ray_stream.actors.peers import ask, within
from ray_stream.actors.settings import HostSettings, packed
from ray_stream.config import ClusterConfig
from ray_stream.errors import OutcomeUnknownError, RayStreamError, TimeoutExpiredError
from ray_stream.metadata.commands import PartitionServed
from ray_stream.rpc.hosting import DescribeHost, HostDescribed

LOG = logging.getLogger(__name__)


class NodeHosts:
    """Living partition actors of this node by name."""

    def __init__(
        self,
        cluster: str,
        node_id: str,
        config: ClusterConfig,
        secret: str,
        *,
        down: Callable[[str], None],
        failed: Callable[[str], None],
    ) -> None:
        """Watch over none yet.

        Args:
            cluster: its name.
            node_id: of this node, for Ray.
            config: the cluster's.
            secret: the cluster's, for those that listen.
            down: a host that was up is gone.
            failed: a log of a host went offline.
        """
        self._cluster = cluster
        self._node_id = node_id
        self._config = config
        self._secret = secret
        self._down = down
        self._failed = failed
        self._actors: dict[str, Any] = {}
        self._born: dict[str, Any] = {}
        """Actors that were asked for and are not up yet."""
        self._starts: dict[str, asyncio.Event] = {}
        """Starts under way, from before the actor is made until it is up or given up."""
        self._is_ending = False
        self._pids: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, host: str, *, coordinates: bool) -> bool:
        """Start one, of groups or of records; False when it could not be."""
        if self._is_ending:
            return False
        ended = self._starts[host] = asyncio.Event()
        try:
            return await self._start(host, coordinates=coordinates)
        finally:
            del self._starts[host]
            ended.set()

    async def _start(self, host: str, *, coordinates: bool) -> bool:
        actor_class = GroupCoordinatorActorClass if coordinates else PartitionActorClass
        settings = HostSettings(
            cluster=self._cluster,
            host=host,
            node_id=self._node_id,
            config=self._config,
            secret=self._secret,
        )
        options = spawning.options(host, self._node_id)
        try:
            actor: Any = await asyncio.to_thread(
                actor_class.options(**options).remote, packed(settings)
            )
        except RayError as error:
            LOG.warning("partition actor %s could not be made: %s", host, error)
            return False
        if self._is_ending:
            ray.kill(actor)
            return False
        self._born[host] = actor
        try:
            pid = await within(actor.start.remote(), self._config.start_timeout_ms)
        except (RayError, TimeoutExpiredError) as error:
            LOG.warning("partition actor %s did not start: %s", host, error)
            ray.kill(actor)
            return False
        finally:
            del self._born[host]
        self._adopt(host, actor, pid)
        return True

    async def find_living(self) -> dict[str, list[PartitionServed]]:
        """Adopt hosts that an earlier broker of this node started, with what they serve."""
        names = await asyncio.to_thread(spawning.living_hosts, self._cluster, self._node_id)
        found = await asyncio.gather(*(self._find(name) for name in names))
        return {name: served for name, served in found if served is not None}

    async def _find(self, name: str) -> tuple[str, list[PartitionServed] | None]:
        actor: Any = await asyncio.to_thread(spawning.find, name)
        if actor is None:
            return name, None
        actor.start.remote()  # unless somebody did: its broker may have died in between
        try:
            described: HostDescribed = await ask(
                actor, DescribeHost(), self._config.actor_timeout_ms
            )
        except OutcomeUnknownError:
            return name, None
        except RayStreamError as error:
            LOG.warning("partition actor %s does not answer and is killed: %s", name, error)
            ray.kill(actor)
            return name, None
        self._adopt(name, actor, described.pid)
        return name, described.served

    async def ask(self, host: str, request: Any) -> Any:
        """A host's answer, however long it takes; `OutcomeUnknownError` when it dies."""
        actor = self._actors.get(host)
        if actor is None:
            raise OutcomeUnknownError(f"the partition actor {host} is gone")
        return await ask(actor, request)

    async def stop(self, host: str) -> None:
        """End one that has nothing to serve; its logs are closed first."""
        actor = self._actors.pop(host, None)
        task = self._tasks.pop(host, None)
        self._pids.pop(host, None)
        if task is not None:
            task.cancel()
        if actor is not None:
            with contextlib.suppress(RayError, TimeoutExpiredError):
                await within(actor.stop.remote(), self._config.actor_timeout_ms)
            ray.kill(actor)

    def pids(self) -> dict[str, int]:
        """Process ids of the living hosts."""
        return dict(self._pids)

    async def stop_all(self) -> None:
        """End all of them, for good; those that are not up yet have nothing to close."""
        self._is_ending = True
        for actor in self._born.values():
            ray.kill(actor)
        await asyncio.gather(*(ended.wait() for ended in self._starts.values()))
        await asyncio.gather(*(self.stop(host) for host in list(self._actors)))

    def _adopt(self, host: str, actor: Any, pid: int) -> None:
        self._actors[host] = actor
        self._pids[host] = pid
        self._tasks[host] = asyncio.create_task(self._watch(host, actor))

    async def _watch(self, host: str, actor: Any) -> None:
        failures = 0

        def pinged(count: int) -> None:
            nonlocal failures
            if count != failures:
                failures = count
                self._failed(host)

        await until_dead(actor, self._config, lambda: self._end(host, actor), pinged)
        if self._actors.pop(host, None) is not None:
            self._tasks.pop(host, None)
            self._pids.pop(host, None)
            self._down(host)

    def _end(self, host: str, actor: Any) -> None:
        LOG.warning("partition actor %s is silent and is killed", host)
        ray.kill(actor)
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self._pids[host], signal.SIGKILL)
