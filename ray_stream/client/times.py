"""From a time to a record: the first one of a partition that is not older.

Owns: looking into the batch that a leader names. Refuses: what users type (`starts`), and finding
that batch: to a leader a payload is opaque, so it names the first batch that holds a young enough
record, by what the header says.

Usually one batch a partition is fetched and decoded. More are when the records that made the batch
young are gone: they were in front of the log start, or are no records of users.

Where the bytes are damaged nobody can say which record it is. Then a start is where the damage
begins, and an end where it ends: whoever reads comes upon it and is told its range, and no record
is left out in silence.
"""

from collections.abc import Mapping

import numpy as np

from ray_stream.client.calls import Deadline, timed_out
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import Assign, Pause
from ray_stream.client.decoding import Decoder
from ray_stream.client.driving import Driver
from ray_stream.client.handout import HandOut
from ray_stream.client.lookups import Lookups
from ray_stream.config import ConsumerConfig, MiB
from ray_stream.errors import CorruptRecordError
from ray_stream.records.arrays import integers
from ray_stream.rpc.messages import LATEST
from ray_stream.types import NO_OFFSET, TopicPartition

_FETCH_MAX_BYTES = 4 * MiB


def first_not_older(
    lookups: Lookups,
    times: Mapping[TopicPartition, int],
    deadline: Deadline,
    *,
    isolation_level: str,
    as_end: bool = False,
) -> dict[TopicPartition, int]:
    """The offset of the first record with that timestamp or a later one.

    Args:
        lookups: whom to ask.
        times: for each partition, in ms.
        deadline: when to give up.
        isolation_level: decides what is readable.
        as_end: the offsets are where a read ends; only matters where there is damage.

    Returns:
        An offset for each partition; -1 where no record is that young.

    Raises:
        UnknownTopicOrPartitionError: a topic or partition does not exist.
        TimeoutExpiredError: a leader did not answer by the deadline; the message names it.
    """
    found = lookups.offsets(times, deadline, isolation_level)
    batches = {name: offset for name, offset in found.items() if offset >= 0}
    if not batches:
        return found
    ends = lookups.offsets(dict.fromkeys(batches, LATEST), deadline, isolation_level)
    # Should a log start move meanwhile, what is left of the log begins there.
    config = ConsumerConfig(
        auto_offset_reset="earliest",
        isolation_level=isolation_level,  # type: ignore[arg-type]
        fetch_max_bytes=_FETCH_MAX_BYTES,
    )
    search = _Search(lookups, config, batches, ends)
    return found | search.run(times, deadline, as_end=as_end)


class _Search:
    """A reader of its own, from the batches that the leaders named on."""

    def __init__(
        self,
        lookups: Lookups,
        config: ConsumerConfig,
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        self._starts = starts
        self._core = ConsumerCore(config, lookups.directory)
        self._driver = Driver(lookups.services, lookups.clock, self._core)
        self._hand_out = HandOut(self._core, self._driver, Decoder(config))
        self._driver.step(Assign(starts, ends))

    def run(
        self, times: Mapping[TopicPartition, int], deadline: Deadline, *, as_end: bool
    ) -> dict[TopicPartition, int]:
        """The offset for each start; -1 when the end came first."""
        found = dict.fromkeys(self._starts, NO_OFFSET)
        left = dict(self._starts)
        while left:
            try:
                taken = self._hand_out.next_batch(deadline)
            except CorruptRecordError as damage:
                name = TopicPartition(damage.topic, damage.partition)
                first = max(damage.first_offset, self._starts[name])
                found[name] = damage.next_offset if as_end else first
            else:
                if taken is None:
                    break
                name = taken.name
                young = integers(taken.rows["timestamp"]) >= times[name]
                if not young.any():
                    continue
                found[name] = taken.rows["offset"][int(np.argmax(young))].as_py()
            del left[name]
            self._driver.step(Pause((name,)))
        if not self._core.is_done:
            name = next(iter(left))
            what = f"looking up a time in {name.topic}-{name.partition}"
            raise timed_out(what, deadline, None)
        return found
