"""What users give to a consumer's methods, checked.

Owns: errors that name the argument, say what is valid, and what to do. Refuses: positions
(`starts`), options (`config`).
"""

import re
from collections.abc import Iterable
from typing import cast

from ray_stream.client.consumer_events import Subscription
from ray_stream.config import check_topic_name
from ray_stream.errors import InvalidArgumentError
from ray_stream.types import TopicPartition

Topic = str | re.Pattern[str]


def subscription_of(topics: Iterable[object]) -> Subscription:
    """Topic names and patterns, alone or in lists.

    Raises:
        InvalidTopicError: a name that cannot be one.
        InvalidArgumentError: neither names nor patterns of text.
    """
    names: list[str] = []
    patterns: list[re.Pattern[str]] = []
    flat: list[object] = []
    for one in topics:
        if isinstance(one, list | tuple):
            flat.extend(cast("Iterable[object]", one))
        else:
            flat.append(one)
    for one in flat:
        if isinstance(one, re.Pattern):
            if not isinstance(one.pattern, str):
                raise InvalidArgumentError(f"{one!r} is a pattern of bytes: topic names are text")
            patterns.append(one)
        else:
            names.append(check_topic_name(one))
    if not flat:
        raise InvalidArgumentError("subscribe() needs topic names or patterns; assign([]) lets go")
    return Subscription(tuple(dict.fromkeys(names)), tuple(patterns))


def partition_of(partition: object) -> TopicPartition:
    """A partition's name: `TopicPartition("topic", 0)`, or the bare pair.

    Raises:
        InvalidArgumentError: anything else.
    """
    match partition:
        case (str(topic), int(number)) if not isinstance(number, bool):
            return TopicPartition(topic, number)
        case _:
            raise InvalidArgumentError(
                f'{partition!r} is not a partition: TopicPartition("topic", 0) is one'
            )


def partitions_of(partitions: object) -> list[TopicPartition]:
    """Several partitions' names.

    Raises:
        InvalidArgumentError: one of them is none, or it is one instead of a list.
    """
    if isinstance(partitions, str | tuple) or not isinstance(partitions, Iterable):
        raise InvalidArgumentError(f"{partitions!r}: a list of TopicPartition is needed")
    return list(dict.fromkeys(partition_of(one) for one in partitions))


def count_of(name: str, count: object) -> int:
    """A positive number.

    Raises:
        InvalidArgumentError: anything else.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidArgumentError(f"{name}={count!r}: a number from 1 on is needed")
    return count
