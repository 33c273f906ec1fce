"""The Ray shell of group coordinators: a partition actor whose partitions are those of the groups.

Owns: looking at the controller's metadata for them, and at members that are actors. Refuses:
deciding (`GroupHost`, `GroupCoordinator`).

Ray's word that a member is dead is a hint: its session is shortened only after the member itself
could not be reached either.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from ray_stream.actors import spawning
from ray_stream.actors.door import Handler
from ray_stream.actors.group_control import GroupControl, GroupShell, seen_topics
from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.loop import Turning
from ray_stream.actors.partition import PartitionActor, PartitionShell
from ray_stream.actors.peers import ask, within
from ray_stream.errors import OutcomeUnknownError, TimeoutExpiredError
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    DeleteGroup,
    DeleteOffsets,
    DescribeGroup,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    ResetOffsets,
)
from ray_stream.rpc.hosting import LeadPartitions, ReleasePartitions
from ray_stream.rpc.messages import MetadataRequest, MetadataResponse

LOG = logging.getLogger(__name__)
LOOK_S = 1.0
"""How often the controller is asked whether anything changed."""
METADATA_MS = 5_000
REACH_MS = 500
"""A member that Ray calls dead is asked itself, and waited for so long."""
GRACE_MS = 0


class GroupCoordinatorActor(PartitionActor):
    """Coordinates the groups of the internal partitions that its node leads."""

    def __init__(self, settings: bytes) -> None:
        """Args: settings: a packed `HostSettings`."""
        self._wanted = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._aio: asyncio.AbstractEventLoop | None = None
        self._members: dict[tuple[str, str], asyncio.Task[None]] = {}
        super().__init__(settings)

    @ray.method
    async def start(self) -> int:
        """Start the loop thread, and to look at the controller, once; return the process id."""
        self._aio = asyncio.get_running_loop()
        if self._start_loop():
            self._main = asyncio.create_task(self._follow())
        return os.getpid()

    def _turning(self, shell: PartitionShell) -> Turning:
        return GroupShell(shell, self._groups)

    def _services(self) -> Mapping[type[msgspec.Struct], Handler]:
        self._groups = GroupHost(
            self._host,
            self._storage,
            self._clock,
            want_metadata=lambda: self._soon(self._wanted.set),
            joined=lambda *member: self._soon(lambda: self._look_after(*member)),
        )
        groups = self._groups
        self._group_control = GroupControl(self._control, groups)
        return {
            ConsumerGroupHeartbeat: groups.heartbeat,
            ListGroups: groups.list_groups,
            **dict.fromkeys(
                (
                    OffsetCommit,
                    OffsetFetch,
                    DescribeGroup,
                    DeleteGroup,
                    ResetOffsets,
                    DeleteOffsets,
                ),
                groups.ask,
            ),
        }

    def _orders(self) -> Mapping[type[msgspec.Struct], Handler]:
        return {
            **super()._orders(),
            LeadPartitions: self._group_control.lead,
            ReleasePartitions: self._group_control.release,
        }

    def _soon(self, call: Any) -> None:
        if self._aio is not None:
            self._aio.call_soon_threadsafe(call)

    # --- the controller --------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Show the coordinators what the controller shows, whenever it has changed."""
        seen = -1
        while True:
            wanted = self._wanted.is_set()
            self._wanted.clear()
            self._loop.post(self._group_control.look)
            try:
                seen = await self._look(seen, wanted=wanted)
            except (OutcomeUnknownError, TimeoutExpiredError) as error:
                LOG.info("the controller is away: %s", error)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_S)

    async def _look(self, seen: int, *, wanted: bool) -> int:
        name = spawning.controller_name(self._settings.cluster)
        controller = await asyncio.to_thread(spawning.find, name)
        if controller is None:
            return seen
        if not wanted:
            short: MetadataResponse = await ask(controller, MetadataRequest([]), METADATA_MS)
            if short.version == seen:
                return seen
        answer: MetadataResponse = await ask(controller, MetadataRequest(None), METADATA_MS)
        topics = seen_topics(answer)
        self._loop.post(lambda: self._groups.show(answer.version, topics))
        return answer.version

    # --- members that are actors -----------------------------------------------------------------

    def _look_after(self, group_id: str, member_id: str, client_id: str) -> None:
        member = (group_id, member_id)
        if member in self._members or not client_id.startswith(spawning.MEMBER_PREFIX):
            return
        name = client_id.removeprefix(spawning.MEMBER_PREFIX)
        task = asyncio.get_running_loop().create_task(self._watch(member, name))
        self._members[member] = task
        task.add_done_callback(lambda _: self._members.pop(member, None))

    async def _watch(self, member: tuple[str, str], name: str) -> None:
        """Until Ray says that the actor is gone, and it does not answer either."""
        actor = await asyncio.to_thread(spawning.find, name)
        if actor is not None:
            with contextlib.suppress(RayError):
                await actor.watch.remote()
            if await _answers(actor):
                return  # it lives, whatever became of the call: its session decides
        self._loop.post(lambda: self._groups.suspect(*member, GRACE_MS))


async def _answers(actor: Any) -> bool:
    try:
        await within(actor.ping.remote(), REACH_MS)
    except (RayError, TimeoutExpiredError):
        return False
    return True


GroupCoordinatorActorClass = ray.remote(GroupCoordinatorActor)
