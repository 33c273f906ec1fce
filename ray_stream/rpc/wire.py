"""Messages as frames: one msgpack envelope, and the batches beside it as they are.

Owns: encoding, decoding, and the refusal of what is malformed. Refuses: transport. Nothing is ever
unpickled: an envelope is msgpack of a closed union of structs, checked field by field.
"""

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from ray_stream.errors import InvalidArgumentError, RayStreamError
from ray_stream.groups import commands as groups
from ray_stream.log.storage import Buffer
from ray_stream.metadata import commands
from ray_stream.records.gathered import Part
from ray_stream.rpc import hosting, messages

Message = (
    messages.ProduceRequest
    | messages.ProduceResponse
    | messages.FetchRequest
    | messages.FetchResponse
    | messages.ListOffsetsRequest
    | messages.ListOffsetsResponse
    | messages.MetadataRequest
    | messages.MetadataResponse
    | messages.WatchAssignment
    | messages.Failed
    | commands.RegisterBroker
    | commands.BrokerRegistered
    | commands.BrokerLost
    | commands.CreateTopic
    | commands.TopicCreated
    | commands.AlterTopic
    | commands.TopicAltered
    | commands.DeleteTopic
    | commands.TopicDeleted
    | commands.InitProducerId
    | commands.ProducerIdGiven
    | commands.ClaimLeadership
    | commands.LeadershipGiven
    | commands.ReportServed
    | commands.PartitionRepaired
    | commands.ConfirmDeleted
    | commands.Done
    | commands.BrokerAssignment
    | hosting.PreparePartitions
    | hosting.PartitionsPrepared
    | hosting.LeadPartitions
    | hosting.PartitionsLed
    | hosting.AlterPartitions
    | hosting.ReleasePartitions
    | hosting.PartitionsReleased
    | hosting.DescribeHost
    | hosting.HostDescribed
    | groups.ConsumerGroupHeartbeat
    | groups.HeartbeatAnswer
    | groups.OffsetCommit
    | groups.OffsetsCommittedAnswer
    | groups.OffsetFetch
    | groups.OffsetsFetched
    | groups.DescribeGroup
    | groups.GroupDescription
    | groups.ListGroups
    | groups.GroupsListed
    | groups.DeleteGroup
    | groups.ResetOffsets
    | groups.DeleteOffsets
    | groups.Done
)
"""Everything that crosses a process boundary."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)
_WITH_BATCHES = (messages.ProduceRequest, messages.FetchResponse)
MESSAGE_TYPES: tuple[type[msgspec.Struct], ...] = get_args(Message)


def encode(message: msgspec.Struct) -> list[Part]:
    """The envelope, and behind it the batches that travel beside the message."""
    if isinstance(message, _WITH_BATCHES):
        batches = message.batches
        return [_ENCODER.encode(msgspec.structs.replace(message, batches=[])), *batches]
    return [_ENCODER.encode(message)]


def decode(frames: Sequence[Buffer]) -> Any:  # noqa: ANN401 - the union, narrowed by the caller
    """The message again.

    Raises:
        InvalidArgumentError: not an envelope, an unknown message, or a field of the wrong type.
    """
    if not frames:
        raise InvalidArgumentError("an empty request: an envelope frame is needed")
    try:
        message = _DECODER.decode(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"a message that this version does not understand: {error}"
        ) from error
    if isinstance(message, _WITH_BATCHES):
        message.batches[:] = frames[1:]  # a list that was just decoded is nobody else's
        return message
    if len(frames) > 1:
        raise InvalidArgumentError(f"{type(message).__name__} carries no batches")
    return message


def encode_error(error: RayStreamError) -> list[Part]:
    """An error in place of an answer."""
    return encode(messages.Failed(messages.ErrorInfo.of(error)))
