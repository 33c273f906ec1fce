"""Topics, as users make, change, describe and delete them.

Owns: validation before anything is sent, and finding out what became of a change whose answer was
lost. Refuses: placement and every other decision of the controller.
"""

import uuid
from typing import Any

import msgspec

from ray_stream.client.calls import Deadline, call, call_once, pause
from ray_stream.client.lookups import Lookups
from ray_stream.clock import Clock
from ray_stream.config import (
    INTERNAL_PREFIX,
    TopicConfig,
    check_partitions,
    check_replication_factor,
    check_topic_name,
    topic_config,
)
from ray_stream.errors import (
    InvalidArgumentError,
    InvalidPartitionsError,
    OutcomeUnknownError,
)
from ray_stream.metadata.commands import AlterTopic, CreateTopic, DeleteTopic, TopicMetadata
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.rpc.services import Services
from ray_stream.types import PartitionDescription, TopicDescription, TopicPartition

DEFAULT_TIMEOUT_S = 30.0
_OFFSETS_TIMEOUT_S = 3.0
"""How long `describe_topic` waits for the offsets of leaders that may be away."""
_RECHECK_MS = 100


class Admin:
    """Topic operations of one client. Thread-safe: each call stands alone."""

    def __init__(self, services: Services, clock: Clock) -> None:
        """Args: services: how to reach the cluster; clock: for timeouts."""
        self._services = services
        self._clock = clock

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        replication_factor: int = 1,
        *,
        exist_ok: bool = False,
        dedicated: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **config: Any,  # noqa: ANN401 - checked against `TopicConfig`, with errors that name it
    ) -> None:
        """Make a topic; returns when every partition is served.

        Args:
            name: 1 to 249 of `[a-zA-Z0-9._-]`.
            partitions: how many.
            replication_factor: replicas of each partition; this version serves 1.
            exist_ok: accept an equal topic of that name.
            dedicated: give every partition an actor of its own.
            timeout: seconds.
            **config: settings as in `TopicConfig`.

        Raises:
            InvalidTopicError, InvalidPartitionsError, InvalidReplicationFactorError: see there.
            UnknownOptionError, InvalidConfigError, ConfigNotEnforcedError: about one setting.
            TopicAlreadyExistsError: the name is taken.
            TimeoutExpiredError: it may or may not be there.
        """
        check_topic_name(name)
        check_partitions(partitions)
        check_replication_factor(replication_factor)
        topic_config(config, f"topic {name!r}")
        # The id is drawn here, so a repeated request is known to the controller as the same one.
        deadline = Deadline(self._clock, timeout)
        command = CreateTopic(
            name=name,
            topic_id=uuid.uuid4().hex,
            partitions=partitions,
            replication_factor=replication_factor,
            exist_ok=_check_bool("exist_ok", exist_ok),
            dedicated=_check_bool("dedicated", dedicated),
            options=config,
            timeout_ms=deadline.left_ms(),
        )
        call(
            self._services.controller.create_topic,
            command,
            deadline=deadline,
            what=f"creating topic {name!r}",
        )

    def topics(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> list[str]:
        """The names of all topics but internal ones, sorted."""
        lookups = self._lookups()
        lookups.refresh(None, Deadline(self._clock, timeout))
        names = lookups.directory.names()
        return [name for name in names if not name.startswith(INTERNAL_PREFIX)]

    def describe_topic(
        self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> TopicDescription:
        """One topic, where its partitions are served, and their offsets.

        Args:
            name: the topic.
            timeout: seconds for the controller's answer.

        Returns:
            Offsets are -1 for a partition whose leader is away.

        Raises:
            UnknownTopicOrPartitionError: there is no such topic.
        """
        check_topic_name(name)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        topic = lookups.topic(name, deadline)
        patience = Deadline(self._clock, min(_OFFSETS_TIMEOUT_S, deadline.left_ms() / 1000))
        beginnings = self._offsets(lookups, topic, EARLIEST, patience)
        ends = self._offsets(lookups, topic, LATEST, patience)
        return TopicDescription(
            name=topic.name,
            topic_id=topic.topic_id,
            replication_factor=topic.replication_factor,
            dedicated=topic.dedicated,
            config=msgspec.structs.asdict(topic.config),
            partitions=tuple(
                PartitionDescription(
                    partition=one.partition,
                    leader=one.leader,
                    leader_epoch=one.leader_epoch,
                    replicas=tuple(one.replicas),
                    isr=tuple(one.isr),
                    beginning_offset=beginnings.get(one.partition, -1),
                    end_offset=ends.get(one.partition, -1),
                    offline_reason=one.offline_reason,
                )
                for one in topic.partitions
            ),
        )

    def _offsets(
        self, lookups: Lookups, topic: TopicMetadata, which: int, deadline: Deadline
    ) -> dict[int, int]:
        served = [one.partition for one in topic.partitions if one.host]
        questions = {TopicPartition(topic.name, number): which for number in served}
        found = lookups.reachable_offsets(questions, deadline)
        return {partition.partition: offset for partition, offset in found.items()}

    def alter_topic(
        self,
        name: str,
        partitions: int | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **config: Any,  # noqa: ANN401 - checked against `TopicConfig`, with errors that name it
    ) -> None:
        """Give a topic more partitions, other settings, or both; returns when they hold.

        Args:
            name: the topic.
            partitions: the new count, not below the present one; None leaves it.
            timeout: seconds.
            **config: the settings that change; the others stay.

        Raises:
            UnknownTopicOrPartitionError: there is no such topic.
            InvalidPartitionsError: fewer partitions than there are.
            UnknownOptionError, InvalidConfigError, ConfigNotEnforcedError: about one setting.
            TimeoutExpiredError: the change may or may not have been made.
        """
        check_topic_name(name)
        if partitions is None and not config:
            raise InvalidArgumentError(
                f"alter_topic({name!r}) changes nothing: give partitions=, or a setting"
            )
        if partitions is not None:
            check_partitions(partitions)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        before = lookups.topic(name, deadline)
        wanted = topic_config(config, f"topic {name!r}", before.config)
        if partitions is not None and partitions < len(before.partitions):
            raise InvalidPartitionsError(
                f"partitions={partitions} is below the {len(before.partitions)} that topic "
                f"{name!r} has: partitions are never taken away"
            )
        while True:
            command = AlterTopic(name, partitions, config, deadline.left_ms())
            what = f"altering topic {name!r}"
            try:
                call_once(
                    self._services.controller.alter_topic, command, deadline=deadline, what=what
                )
            except OutcomeUnknownError:
                if _holds(lookups.topic(name, deadline), partitions, wanted):
                    return
                pause(min(_RECHECK_MS, deadline.left_ms()))
            else:
                return

    def delete_topic(self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Delete a topic with all its records; returns when no partition of it is served any more.

        Raises:
            UnknownTopicOrPartitionError: there is no such topic.
            TimeoutExpiredError: it may or may not be gone.
        """
        check_topic_name(name)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        topic_id = lookups.topic(name, deadline).topic_id
        while True:
            command = DeleteTopic(name, deadline.left_ms())
            what = f"deleting topic {name!r}"
            try:
                call_once(
                    self._services.controller.delete_topic, command, deadline=deadline, what=what
                )
            except OutcomeUnknownError:
                # Whoever made a topic of this name since then made another one: not ours to delete.
                if not self._is_there(lookups, name, topic_id, deadline):
                    return
                pause(min(_RECHECK_MS, deadline.left_ms()))
            else:
                return

    def _is_there(self, lookups: Lookups, name: str, topic_id: str, deadline: Deadline) -> bool:
        lookups.refresh([name], deadline)
        topic = lookups.directory.topic(name)
        return topic is not None and topic.topic_id == topic_id

    def _lookups(self) -> Lookups:
        return Lookups(self._services, self._clock)


def _holds(topic: TopicMetadata, partitions: int | None, wanted: TopicConfig) -> bool:
    return topic.config == wanted and partitions in (None, len(topic.partitions))


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name}={value!r}: True or False is needed")
    return value
