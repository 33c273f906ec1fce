"""Judge the history files of a run: `python -m tests.history.checker FILE...`.

Exit status: 0 every promise was kept, 1 one was broken, 2 the files are no history.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ray_stream.testing.checker import Report, check
from ray_stream.testing.history import MalformedHistoryError, read_history

ANOMALIES_SHOWN = 20


def describe(report: Report) -> str:
    """The report as a person reads it."""
    lines = [
        f"sent {report.sent}: {report.acknowledged} acknowledged, {report.failed} failed",
        f"outcome unknown: {report.unknown}, of which {report.unknown_present} are there",
        f"read: {report.read} distinct; acknowledged and not yet read: {report.unread}",
        f"repeats and swaps without idempotence: {report.tolerated}",
    ]
    lines += [f"BROKEN {kind}: {count}" for kind, count in sorted(report.counts.items())]
    lines += [f"  {anomaly}" for anomaly in report.anomalies[:ANOMALIES_SHOWN]]
    if report.valid:
        lines.append("every promise was kept")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        report = check(read_history(map(Path, arguments)))
    except (MalformedHistoryError, OSError) as error:
        sys.stderr.write(f"no history: {error}\n")
        return 2
    sys.stdout.write(f"{describe(report)}\n")
    return 0 if report.valid else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
