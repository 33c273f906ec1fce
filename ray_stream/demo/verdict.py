"""Whether what came back is what was written.

Owns: the comparison of a topic's table with the source, by means that share nothing with ray_stream
(Arrow's JSON reader and pandas). Refuses: how the table was read.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json as arrow_json

from ray_stream.demo.flights import CARRIER, DELAYS, KEY


@dataclass(slots=True)
class Verdict:
    """What was checked, and what did not hold."""

    verified: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, promise: str, problem: str) -> None:
        """Record one check; an empty problem means that the promise held."""
        if problem:
            self.problems.append(f"{promise}: {problem}")
        else:
            self.verified.append(promise)


def judge(table: pa.Table, source: pd.DataFrame) -> Verdict:
    """Compare a topic's records with the flights that were sent.

    Args:
        table: as `Cluster.read` gives it.
        source: as `flights.load` gives it.
    """
    read = _frame(table, source)
    verdict = Verdict()
    verdict.note(f"each of the {len(source):,} flights exactly once", _exactly_once(read, source))
    verdict.note("each record's key is its aircraft", _keys(read))
    verdict.note(
        f"flights of each of the {source[KEY].nunique():,} aircraft in one partition",
        _one_partition(read),
    )
    verdict.note("flights of each aircraft in the order of sending", _in_order(read, source))
    verdict.note(
        f"delays of each of the {source[CARRIER].nunique()} carriers add up as in the source",
        sums(read, source),
    )
    return verdict


def _frame(table: pa.Table, source: pd.DataFrame) -> pd.DataFrame:
    """The values as a frame with the source's columns and types, and where each was read."""
    table = table.sort_by([("partition", "ascending"), ("offset", "ascending")])
    lines = b"\n".join(value.as_buffer() for value in table["value"])
    schema = pa.schema([(name, _arrow_type(dtype)) for name, dtype in source.dtypes.items()])
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    parsed = arrow_json.read_json(io.BytesIO(lines), parse_options=options)
    frame = pd.DataFrame(
        {
            name: pd.array(parsed[name].to_pandas(integer_object_nulls=True), dtype=dtype)
            for name, dtype in source.dtypes.items()
        }
    )
    frame["_partition"] = table["partition"].to_pandas()
    frame["_key"] = table["key"].cast(pa.string()).to_pandas().astype(source[KEY].dtype)
    return frame


def _arrow_type(dtype: Any) -> pa.DataType:  # noqa: ANN401 - any extension type of pandas
    return pa.int64() if pd.api.types.is_integer_dtype(dtype) else pa.string()


def _exactly_once(read: pd.DataFrame, source: pd.DataFrame) -> str:
    columns = list(source.columns)
    counts = pd.concat(
        [
            source.groupby(columns, dropna=False).size().rename("sent"),
            read.groupby(columns, dropna=False).size().rename("read"),
        ],
        axis=1,
    ).fillna(0)
    more = counts["read"] - counts["sent"]
    lost, extra = int(-more[more < 0].sum()), int(more[more > 0].sum())
    return f"{lost:,} are missing and {extra:,} are there too often" if lost or extra else ""


def _keys(read: pd.DataFrame) -> str:
    wrong = ~((read["_key"] == read[KEY]).fillna(False) | (read["_key"].isna() & read[KEY].isna()))
    return f"{int(wrong.sum()):,} records have another key" if wrong.any() else ""


def _one_partition(read: pd.DataFrame) -> str:
    partitions = read.groupby(KEY)["_partition"].nunique()
    scattered = partitions[partitions > 1]
    return f"{len(scattered):,} aircraft are in several partitions" if len(scattered) else ""


def _in_order(read: pd.DataFrame, source: pd.DataFrame) -> str:
    columns = list(source.columns)
    ours = _by_aircraft(read)[columns]
    theirs = _by_aircraft(source)[columns]
    if ours.equals(theirs):
        return ""
    if len(ours) != len(theirs):
        return f"{len(ours):,} flights have an aircraft, not {len(theirs):,}"
    same = (ours == theirs) | (ours.isna() & theirs.isna())
    return f"{int((~same.all(axis=1)).sum()):,} flights stand where another one belongs"


def _by_aircraft(frame: pd.DataFrame) -> pd.DataFrame:
    keyed = frame[frame[KEY].notna()]
    return keyed.sort_values(KEY, kind="stable").reset_index(drop=True)


def sums(read: pd.DataFrame, source: pd.DataFrame) -> str:
    """Whether the delays of each carrier add up alike; empty: they do."""
    ours, theirs = (
        frame.groupby(CARRIER)[list(DELAYS)].agg(["sum", "count"]) for frame in (read, source)
    )
    if ours.equals(theirs):
        return ""
    return "the sums or counts differ"
