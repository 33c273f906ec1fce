"""The services of `rpc.services`, as clients are handed them.

The controller is asked by Ray calls, partition actors by whatever way their `Route` finds.

Owns: which actor a request goes to, and the controller's revival. Refuses: retries and deadlines;
callers hold their own.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
from ray.actor import ActorHandle

from ray_stream.actors import spawning
from ray_stream.actors.calls import call
from ray_stream.actors.routes import Route, Transport
from ray_stream.errors import (
    ControllerNotAvailableError,
    OutcomeUnknownError,
    RayStreamError,
)
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    DeleteGroup,
    DeleteOffsets,
    DescribeGroup,
    GroupDescription,
    GroupsListed,
    HeartbeatAnswer,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    OffsetsCommittedAnswer,
    OffsetsFetched,
    ResetOffsets,
)
from ray_stream.groups.commands import Done as GroupDone
from ray_stream.metadata.commands import (
    AlterTopic,
    CreateTopic,
    DeleteTopic,
    InitProducerId,
    ProducerIdGiven,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from ray_stream.rpc.messages import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
)
from ray_stream.rpc.services import Box, GroupService, PartitionService, Reply


class _Named:
    """An actor that is found by its name when it is needed first."""

    def __init__(self, route: Route) -> None:
        """Args: route: the way to it."""
        self._send = route.send


class RemotePartition(_Named):
    """`PartitionService` over a partition actor."""

    def produce(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        """Append batches."""
        self._send(request, reply)

    def fetch(self, request: FetchRequest, reply: Reply[FetchResponse]) -> None:
        """Read batches."""
        self._send(request, reply)

    def list_offsets(self, request: ListOffsetsRequest, reply: Reply[ListOffsetsResponse]) -> None:
        """Look up offsets."""
        self._send(request, reply)


class RemoteGroupCoordinator(_Named):
    """`GroupService` over a coordinator actor."""

    def heartbeat(self, request: ConsumerGroupHeartbeat, reply: Reply[HeartbeatAnswer]) -> None:
        """A member joins, lives on, confirms, or leaves."""
        self._send(request, reply)

    def commit_offsets(self, request: OffsetCommit, reply: Reply[OffsetsCommittedAnswer]) -> None:
        """Store positions."""
        self._send(request, reply)

    def fetch_offsets(self, request: OffsetFetch, reply: Reply[OffsetsFetched]) -> None:
        """Read stored positions."""
        self._send(request, reply)

    def describe_group(self, request: DescribeGroup, reply: Reply[GroupDescription]) -> None:
        """Everything about one group."""
        self._send(request, reply)

    def list_groups(self, request: ListGroups, reply: Reply[GroupsListed]) -> None:
        """The groups of this coordinator."""
        self._send(request, reply)

    def delete_group(self, request: DeleteGroup, reply: Reply[GroupDone]) -> None:
        """Forget a group."""
        self._send(request, reply)

    def reset_offsets(self, request: ResetOffsets, reply: Reply[GroupDone]) -> None:
        """Store positions of a group without members."""
        self._send(request, reply)

    def delete_offsets(self, request: DeleteOffsets, reply: Reply[GroupDone]) -> None:
        """Forget positions of a group without members."""
        self._send(request, reply)


class RemoteController:
    """`ControllerService` over the controller actor, whichever it is at the moment."""

    def __init__(self, cluster: str, revive: Callable[[], None]) -> None:
        """Args: revive: starts a controller when there is none; blocking, called on a thread."""
        self._cluster = cluster
        self._revive = revive
        self._actor: ActorHandle[Any] | None = None
        self._reviving = threading.Lock()

    def metadata(self, request: MetadataRequest, reply: Reply[MetadataResponse]) -> None:
        """Describe topics."""
        self._send(request, reply)

    def create_topic(self, request: CreateTopic, reply: Reply[TopicCreated]) -> None:
        """Create a topic."""
        self._send(request, reply)

    def alter_topic(self, request: AlterTopic, reply: Reply[TopicAltered]) -> None:
        """Change a topic."""
        self._send(request, reply)

    def delete_topic(self, request: DeleteTopic, reply: Reply[TopicDeleted]) -> None:
        """Delete a topic."""
        self._send(request, reply)

    def init_producer_id(self, request: InitProducerId, reply: Reply[ProducerIdGiven]) -> None:
        """Get a producer id."""
        self._send(request, reply)

    def _send(self, request: msgspec.Struct, reply: Reply[Any]) -> None:
        actor = self._actor
        try:
            if actor is None:
                actor = self._actor = spawning.find(spawning.controller_name(self._cluster))
                if actor is not None:
                    actor.start.remote()  # unless somebody did, which is almost always
        except RayStreamError as error:
            reply(error)
            return
        if actor is None:
            self._start_reviving()
            reply(ControllerNotAvailableError("the controller is down and is being replaced"))
            return

        def answered(answer: Any) -> None:
            if isinstance(answer, OutcomeUnknownError) and self._actor is actor:
                self._actor = None
            reply(answer)

        call(actor, request, answered)

    def _start_reviving(self) -> None:
        """One thread at a time tries; the callers' own retries find what it brought up."""
        if not self._reviving.acquire(blocking=False):
            return

        def run() -> None:
            try:
                self._revive()
            finally:
                self._reviving.release()

        try:
            threading.Thread(target=run, name="ray_stream-revive", daemon=True).start()
        except RuntimeError:
            # No thread starts while the interpreter ends; the caller's own deadline reports it.
            self._reviving.release()


class RayServices:
    """`Services` of the actors of one cluster. One for each handle; safe from any thread."""

    def __init__(self, cluster: str, revive: Callable[[], None]) -> None:
        """Args: revive: see `RemoteController`."""
        self.controller = RemoteController(cluster, revive)
        self._transport = Transport(cluster)
        self._routes: dict[str, Route] = {}
        self._hosts: dict[str, RemotePartition] = {}
        self._coordinators: dict[str, RemoteGroupCoordinator] = {}
        self._end = weakref.finalize(self, _close_all, self._routes)
        self._end.atexit = False  # connections serve exit hooks, and end by one of their own

    def partitions(self, host: str) -> PartitionService:
        """The partition actor of that full name."""
        stub = self._hosts.get(host)
        if stub is None:
            stub = self._hosts[host] = RemotePartition(self._route(host))
        return stub

    def coordinator(self, host: str) -> GroupService:
        """The coordinator actor of that full name."""
        stub = self._coordinators.get(host)
        if stub is None:
            stub = self._coordinators[host] = RemoteGroupCoordinator(self._route(host))
        return stub

    def attend(self, box: Box, wait_ms: int) -> bool:
        """Read the answers that come over sockets in the thread that waits for one of them."""
        return self._transport.attend(box, wait_ms)

    def _route(self, host: str) -> Route:
        return self._routes.setdefault(host, Route(host, self._transport))


def _close_all(routes: dict[str, Route]) -> None:
    for route in routes.values():
        route.close()
