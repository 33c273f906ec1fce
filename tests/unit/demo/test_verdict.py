"""The judgement of the demo: what is wrong is found, and what is right is not blamed."""

from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pytest

from ray_stream.demo.flights import rows
from ray_stream.demo.verdict import judge

ROWS: list[dict[str, Any]] = [
    {"flight": 1, "carrier": "UA", "tailnum": "N1", "dep_delay": 2, "arr_delay": None},
    {"flight": 2, "carrier": "AA", "tailnum": "N2", "dep_delay": None, "arr_delay": -5},
    {"flight": 3, "carrier": "UA", "tailnum": None, "dep_delay": 7, "arr_delay": 3},
    {"flight": 4, "carrier": "AA", "tailnum": "N1", "dep_delay": 0, "arr_delay": 11},
    {"flight": 5, "carrier": "UA", "tailnum": "N2", "dep_delay": -1, "arr_delay": 0},
]
PARTITION = {"N1": 0, "N2": 1, None: 0}


@pytest.fixture
def source() -> pd.DataFrame:
    return pd.DataFrame(ROWS).convert_dtypes()


def table(*flights: dict[str, Any]) -> pa.Table:
    """These flights as a topic holds them, in this order."""
    return pa.table(
        {
            "offset": pa.array(range(len(flights)), pa.int64()),
            "key": pa.array([one["tailnum"] for one in flights], pa.binary()),
            "value": pa.array([msgspec.json.encode(one) for one in flights], pa.binary()),
            "partition": pa.array([PARTITION[one["tailnum"]] for one in flights], pa.int32()),
        }
    )


def test_what_was_sent_is_verified(source: pd.DataFrame) -> None:
    found = judge(table(*rows(source)), source)
    assert found.problems == []
    assert len(found.verified) == 5


def test_a_lost_flight_is_found(source: pd.DataFrame) -> None:
    assert "1 are missing and 0" in judge(table(*ROWS[:-1]), source).problems[0]


def test_a_repeated_flight_is_found(source: pd.DataFrame) -> None:
    assert "1 are there too often" in judge(table(*ROWS, ROWS[2]), source).problems[0]


def test_flights_of_an_aircraft_that_changed_places_are_found(source: pd.DataFrame) -> None:
    flights = [ROWS[3], ROWS[1], ROWS[2], ROWS[0], ROWS[4]]
    assert [one.partition(":")[0] for one in judge(table(*flights), source).problems] == [
        "flights of each aircraft in the order of sending"
    ]


def test_an_aircraft_in_two_partitions_is_found(source: pd.DataFrame) -> None:
    scattered = table(*ROWS).set_column(3, "partition", pa.array([0, 1, 0, 5, 1], pa.int32()))
    assert "1 aircraft are in several partitions" in judge(scattered, source).problems[0]


def test_a_record_under_a_foreign_key_is_found(source: pd.DataFrame) -> None:
    keys = pa.array([b"N1", b"N2", b"N3", b"N1", b"N2"], pa.binary())
    problems = judge(table(*ROWS).set_column(1, "key", keys), source).problems
    assert problems == ["each record's key is its aircraft: 1 records have another key"]


def test_a_changed_delay_is_found(source: pd.DataFrame) -> None:
    changed = [*ROWS[:4], {**ROWS[4], "arr_delay": 1}]
    assert any("add up" in problem for problem in judge(table(*changed), source).problems)
