"""Where a consumer stands in its partitions, and where it might: positions, ends, times, lag.

Owns: looking positions up, moving them, checking that a partition is assigned. Refuses: which
partitions are (`consumer`, `rebalancing`), what users may type for a place (`starts`).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from ray_stream.client.arguments import partition_of, partitions_of
from ray_stream.client.calls import Deadline, timed_out
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import KEEP, NOWHERE, Seek
from ray_stream.client.driving import Driver
from ray_stream.client.handout import HandOut
from ray_stream.client.lookups import Lookups
from ray_stream.client.starts import Place, places, resolved, to_ms
from ray_stream.client.times import first_not_older
from ray_stream.errors import InvalidArgumentError
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.types import StartPosition, TopicPartition


class Standing:
    """Positions of one consumer."""

    def __init__(
        self,
        core: ConsumerCore,
        driver: Driver,
        hand_out: HandOut,
        lookups: Lookups,
        isolation_level: str,
    ) -> None:
        """Args: core: has them; isolation_level: decides what "latest" is."""
        self._core = core
        self._driver = driver
        self._hand_out = hand_out
        self._lookups = lookups
        self._isolation_level = isolation_level

    def resolved(
        self, wanted: Mapping[TopicPartition, Place], deadline: Deadline
    ) -> dict[TopicPartition, int]:
        """Offsets; the beginning is left to the machine, which finds it even when it moves."""
        return resolved(
            wanted,
            self._lookups,
            deadline,
            isolation_level=self._isolation_level,
            keep=frozenset((EARLIEST, KEEP, NOWHERE)),
        )

    def assigned(self, partitions: Iterable[TopicPartition] | None) -> list[TopicPartition]:
        """These partitions, None for all; each one has to be assigned."""
        if partitions is None:
            return list(self._core.states)
        names = partitions_of(partitions)
        for name in names:
            if name not in self._core.states:
                raise InvalidArgumentError(
                    f"{name.topic}-{name.partition} is not assigned to this consumer: "
                    "assignment() lists what is"
                )
        return names

    def seek_to(
        self,
        partition: TopicPartition | str | int | StartPosition,
        start: StartPosition | None,
        deadline: Deadline,
    ) -> None:
        """As `Consumer.seek` is called."""
        if start is None and not isinstance(partition, str | tuple):
            self.seek(self._only_partition(), partition, deadline)
        elif start is None:
            raise InvalidArgumentError(f"seek({partition!r}) does not say where to")
        elif isinstance(partition, str):
            self.seek(self._partitions_of(partition), start, deadline)
        else:
            self.seek(self.assigned([partition_of(partition)]), start, deadline)

    def seek(
        self, partitions: list[TopicPartition], start: StartPosition, deadline: Deadline
    ) -> None:
        """Go on from somewhere else in all of these."""
        starts = self.resolved(places(start, partitions, "start"), deadline)
        self._hand_out.stop_run()
        self._driver.step(Seek(starts))

    def _only_partition(self) -> list[TopicPartition]:
        assigned = list(self._core.states)
        if len(assigned) != 1:
            raise InvalidArgumentError(
                f"{len(assigned)} partitions are assigned: say which one, "
                'seek(TopicPartition("topic", 0), offset)'
            )
        return assigned

    def _partitions_of(self, topic: str) -> list[TopicPartition]:
        found = [one for one in self._core.states if one.topic == topic]
        if not found:
            raise InvalidArgumentError(f"no partition of topic {topic!r} is assigned")
        return found

    def positions(
        self, partitions: list[TopicPartition], deadline: Deadline
    ) -> dict[TopicPartition, int]:
        """Where the next record of each partition comes from, after waiting until that is known."""
        states = [self._core.states[name] for name in partitions]

        def is_settled() -> bool:
            return all(one.position >= 0 or one.error is not None for one in states)

        if not is_settled() and not self._driver.wait(is_settled, deadline):
            missing = next(one.name for one in states if one.position < 0)
            what = f"looking up the position of {missing.topic}-{missing.partition}"
            raise timed_out(what, deadline, None)
        found = {}
        for state in states:
            if state.position < 0:
                raise self._core.take_error(state)
            found[state.name] = self._hand_out.position(state)
        return found

    def to_commit(
        self, offsets: Mapping[TopicPartition, int] | None, deadline: Deadline
    ) -> dict[TopicPartition, int]:
        """What `Consumer.commit` was asked to store, checked; None: all that is known.

        Raises:
            InvalidArgumentError: a partition that is not assigned, or an offset beyond the
                position: it was not read yet.
        """
        if offsets is None:
            known = [name for name, one in self._core.states.items() if one.position >= 0]
            return self.positions(known, deadline)
        wanted = {partition_of(name): offset for name, offset in offsets.items()}
        positions = self.positions(self.assigned(list(wanted)), deadline)
        for name, offset in wanted.items():
            if type(offset) is not int or offset < 0:
                raise InvalidArgumentError(
                    f"offset {offset!r} of {name.topic}-{name.partition}: the offset of the next "
                    "record to read is needed, a number from 0 on"
                )
            if offset > positions[name]:
                raise InvalidArgumentError(
                    f"offset {offset} of {name.topic}-{name.partition} is beyond the position "
                    f"{positions[name]}: what was not read cannot be committed; seek() there first"
                )
        return wanted

    def ends(
        self, partitions: Iterable[TopicPartition] | None, which: int, deadline: Deadline
    ) -> dict[TopicPartition, int]:
        """`EARLIEST` or `LATEST` of these partitions, None for all that are assigned."""
        names = self._core.states if partitions is None else partitions_of(partitions)
        questions = dict.fromkeys(names, which)
        return self._lookups.offsets(questions, deadline, self._isolation_level)

    def at_times(
        self, times: Mapping[TopicPartition, datetime | int], deadline: Deadline
    ) -> dict[TopicPartition, int | None]:
        """The first offsets whose records are not older; None where there is none."""
        questions = {partition_of(name): to_ms(at, "time") for name, at in times.items()}
        found = first_not_older(
            self._lookups, questions, deadline, isolation_level=self._isolation_level
        )
        return {name: offset if offset >= 0 else None for name, offset in found.items()}

    def lag(self, deadline: Deadline) -> dict[TopicPartition, int]:
        """How many offsets each assigned partition holds beyond the position."""
        names = list(self._core.states)
        positions = self.positions(names, deadline)
        ends = self.ends(names, LATEST, deadline)
        return {name: max(0, ends[name] - positions[name]) for name in names}
