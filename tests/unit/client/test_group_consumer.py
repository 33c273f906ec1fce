"""Consumers of a group, against the coordinator's own code in another thread."""

import logging
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client.consumer import Consumer
from ray_stream.client.member import Member
from ray_stream.config import ConsumerConfig
from ray_stream.types import TopicPartition
from tests.unit.client.group_services import CLOCK, GROUP, GroupThreads

Make = Callable[..., Consumer]
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[GroupThreads]:
    with GroupThreads(tmp_path) as made:
        yield made


@pytest.fixture
def consumer_of(services: GroupThreads) -> Iterator[Make]:
    """Makes consumers of one group; at the end they leave, if they did not."""
    made = []

    def make(*topics: str | re.Pattern[str], **options: Any) -> Consumer:  # noqa: ANN401
        options.setdefault("group", GROUP)
        options.setdefault("auto_offset_reset", "earliest")
        options.setdefault("request_timeout_ms", 10_000)
        options.setdefault("retry_backoff_ms", 20)
        config = ConsumerConfig(**options)
        one = Consumer(
            services, topics, config, clock=CLOCK, membership=Member(services, config, CLOCK)
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def fill(services: GroupThreads, *counts: int, topic: str = "t") -> None:
    """A topic with so many records in each partition, ten to a batch."""

    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make(topic, len(counts))
        for number, count in enumerate(counts):
            for first in range(0, count, 10):
                values = [b"%d" % one for one in range(first, min(first + 10, count))]
                cluster.append(topic, number, values)
        cluster.show()

    services.do(work)


def until(is_so: Callable[[], object], timeout_s: float = 20) -> None:
    """Give other threads time."""
    give_up = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.002)


def settle(*consumers: Consumer, sizes: list[int]) -> None:
    """Poll in turn, taking nothing, until the partitions are shared like this."""

    def is_settled() -> bool:
        for one in consumers:
            one.pause()
            one.poll(timeout=0)
        return [len(one.assignment()) for one in consumers] == sizes

    until(is_settled)
    for one in consumers:
        one.resume()


def committed(services: GroupThreads) -> dict[int, int]:
    return services.do(lambda _: services.cluster.committed())


def offsets(records: list[Any]) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in records]


def test_a_lone_member_reads_everything_and_its_successor_goes_on(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 30)
    with consumer_of("t") as consumer:
        assert consumer.assignment() == []
        assert len(consumer.poll(12)) == 12
        assert consumer.assignment() == [T0]
        assert consumer.lag() == {T0: 18}
        consumer.commit()
        assert consumer.committed([T0]) == {T0: 12}
    with consumer_of("t") as consumer:
        assert offsets(consumer.poll(1)) == [(0, 12)]
