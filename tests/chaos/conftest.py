"""The fixtures of `tests/ray`, for the long versions of its tests."""

from tests.ray.conftest import starting as starting  # noqa: PLC0414 - a fixture, found by its name
