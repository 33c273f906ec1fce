"""The services of `rpc.services` over Ray calls: always works, closed ports and `ray://` included.

Owns: Ray's object references, and turning Ray's errors into ours. Refuses: retries and deadlines;
callers hold their own. What crosses is bytes: an envelope and batches, never a pickled object of
ours.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
from ray.actor import ActorHandle
from ray.exceptions import RayError

from ray_stream.actors import spawning
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
from ray_stream.log.storage import Buffer
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
from ray_stream.rpc import wire
from ray_stream.rpc.messages import (
    Failed,
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
)
from ray_stream.rpc.services import GroupService, PartitionService, Reply

INLINE_BYTES = 32 * 1024
"""Larger buffers go to Ray out of band, so that it does not copy them into a pickle."""


def outgoing(message: msgspec.Struct) -> list[Any]:
    """A message as arguments of a Ray call."""
    return [_argument(frame) for frame in wire.encode(message)]


def _argument(frame: Buffer) -> Any:
    if len(frame) <= INLINE_BYTES:
        return bytes(frame)
    return np.frombuffer(frame, dtype=np.uint8)


def incoming(frames: list[Any]) -> msgspec.Struct | RayStreamError:
    """The answer in the frames that a Ray call returned."""
    answer = wire.decode([memoryview(frame) for frame in frames])
    return answer.error.to_error() if isinstance(answer, Failed) else answer


def call(actor: Any, request: msgspec.Struct, reply: Reply[Any]) -> None:
    """Call an actor's `call` method; `reply` gets the answer, or `OutcomeUnknownError`."""

    def done(future: Future[list[Any]]) -> None:
        try:
            answer = incoming(future.result())
        except RayError as error:
            answer = unknown(request, error)
        except RayStreamError as error:
            answer = error
        reply(answer)

    try:
        spawning.require_ray()  # without one, Ray would start one of its own for this call
        reference = actor.call.remote(*outgoing(request))
    except RayStreamError as error:
        reply(error)
        return
    except RayError as error:
        reply(unknown(request, error))
        return
    reference.future().add_done_callback(done)


def unknown(request: msgspec.Struct, error: RayError) -> OutcomeUnknownError:
    """Ray lost the peer, or cannot say: the request may have been applied."""
    reason = str(error).strip().split("\n", maxsplit=1)[0]
    return OutcomeUnknownError(
        f"{type(request).__name__} got no answer ({type(error).__name__}: {reason}): "
        "it may have been applied"
    )


class _Named:
    """An actor that is found by its name when it is needed first."""

    def __init__(self, name: str) -> None:
        """Args: name: the actor's full name."""
        self._name = name
        self._actor: ActorHandle[Any] | None = None

    def _send(self, request: msgspec.Struct, reply: Reply[Any]) -> None:
        try:
            if self._actor is None:
                self._actor = spawning.find(self._name)
        except RayStreamError as error:
            reply(error)
            return
        if self._actor is None:
            reply(spawning.not_served(self._name))
            return
        call(self._actor, request, reply)


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
    """`Services` over Ray calls. One for each handle; safe from any thread."""

    def __init__(self, cluster: str, revive: Callable[[], None]) -> None:
        """Args: revive: see `RemoteController`."""
        self.controller = RemoteController(cluster, revive)
        self._hosts: dict[str, RemotePartition] = {}
        self._coordinators: dict[str, RemoteGroupCoordinator] = {}

    def partitions(self, host: str) -> PartitionService:
        """The partition actor of that full name."""
        stub = self._hosts.get(host)
        if stub is None:
            stub = self._hosts[host] = RemotePartition(host)
        return stub

    def coordinator(self, host: str) -> GroupService:
        """The coordinator actor of that full name."""
        stub = self._coordinators.get(host)
        if stub is None:
            stub = self._coordinators[host] = RemoteGroupCoordinator(host)
        return stub
