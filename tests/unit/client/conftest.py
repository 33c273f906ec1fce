"""Fixtures for tests of producers."""

from collections.abc import Iterator
from typing import Any

import pytest

from ray_stream.client.producer import Producer
from ray_stream.config import ProducerConfig
from tests.unit.client.produce_services import CLOCK, Make, ProduceServices


@pytest.fixture
def services() -> Iterator[ProduceServices]:
    with ProduceServices() as made:
        yield made


@pytest.fixture
def producer(services: ProduceServices) -> Iterator[Make]:
    """Makes producers; at the end each must close cleanly."""
    made = []

    def make(**options: Any) -> Producer:  # noqa: ANN401
        one = Producer(services, ProducerConfig(**options), clock=CLOCK, cluster="test")
        made.append(one)
        return one

    yield make
    services.silent.clear()
    services.open_gate()
    for one in made:
        one.close()
