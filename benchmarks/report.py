"""The table of `docs/performance.md` and its plots, made from the files of results.

Run: `python benchmarks/report.py`. Owns: what stands between the two markers, and `docs/plots`.
Refuses: figures that are in no file of results. Plots need matplotlib; without it the table is
written and the plots that are there stay.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

try:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
except ImportError:
    plt = None

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
PAGE = DOCS / "performance.md"
PLOTS = DOCS / "plots"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
OURS, KAFKA = "ray_stream", "kafka"
COLOURS = {OURS: "#1f6f8b", KAFKA: "#b5651d"}
CAPTIONS = {
    "ratios": "Ratio of each row to its target, with the range of the repetitions",
    "throughput": "Records a second, median and range",
    "long_run": "Resident memory at full load, minute by minute",
}
HEAD = ("case", "ray_stream", "Kafka", "ratio (range)", "bound", "target", "reached")
ALL, THOUSAND = 1.0, 1_000


def loaded(path: Path) -> dict[str, Any] | None:
    """A file of results, if it is there and of the present form."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if {"rows", "large_log", "full_load"} & set(found) else None


def figure(value: float, unit: str) -> str:
    """As a person reads it."""
    if unit == "rec/s":
        return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"
    return f"{value:,.0f}" if value >= THOUSAND else f"{value:.3g}"


def told(each: dict[str, Any] | None, unit: str) -> str:
    """Median and range of a contestant."""
    if each is None:
        return "not measured"
    low, high = each["range"]
    return f"{figure(each['median'], unit)} ({figure(low, unit)} to {figure(high, unit)})"


def line(row: dict[str, Any]) -> list[str]:
    """The cells of one row."""
    contestants, unit = row["contestants"], row["unit"]
    first, second = (contestants.get(name) for name in row["pair"])
    cells = [f"{row['row']}, {unit}", told(first, unit), told(second, unit)]
    ratio = row.get("ratio")
    if ratio is None:
        return [*cells, "", "", target(row), "not measured"]
    low, high = ratio["range"]
    bound = "" if ratio["bound"] is None else f"{ratio['bound']:.2f}"
    reached = {True: "yes", False: "**no**", None: ""}[ratio["reached"]]
    return [*cells, f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})", bound, target(row), reached]


def target(row: dict[str, Any]) -> str:
    """What its ratio is to be."""
    if row["target"] is None:
        return ""
    return f"{'≤' if row['lower_is_better'] else '≥'} {row['target']:g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def about(found: dict[str, Any]) -> str:
    """What the figures are of."""
    machine, installed = found["machine"], found["versions"]
    nice = sorted({one for stage in niceness_of(found) for one in stage})
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, kernel "
        f"{machine['kernel']}; Python {installed['python']}, Ray {installed['ray']}, pyarrow "
        f"{installed['pyarrow']}, confluent-kafka {installed['confluent-kafka']}. Niceness of all "
        f"processes: {', '.join(map(str, nice))}; load at the end "
        f"{', '.join(f'{one:.1f}' for one in machine['load'])}."
    )


def niceness_of(found: dict[str, Any]) -> list[list[int]]:
    """Every value that was seen."""
    stages = found.get("niceness", {}).values()
    return [values for stage in stages for values in stage.values()]


def lines_of(found: dict[str, Any]) -> list[list[str]]:
    """The rows beside Kafka."""
    return [line(row) for row in found["rows"] if row["pair"] == [OURS, KAFKA]]


def compared(found: dict[str, Any]) -> list[str]:
    """The sections about `compare.json`."""
    own = [row for row in found["rows"] if row["pair"] != [OURS, KAFKA]]
    parts = [
        (
            f"`python benchmarks/compare.py`, {found['repetitions']} repetitions, interleaved, in "
            f"{sum(found['seconds'].values()) / 60:.0f} minutes. {about(found)} Medians, ranges in "
            "parentheses. The bound is the 90 % bound of the median ratio, on the side that could "
            "disappoint, by order statistics (`benchmarks/figures.py`); a row is reached when the "
            "bound is."
        ),
        table(HEAD, lines_of(found)),
    ]
    if own:
        parts.append(table(("case", "first", "second", *HEAD[3:]), map(line, own)))
    others = [
        [f"{row['row']}, {row['unit']}", name, told(each, row["unit"])]
        for row in found["rows"]
        for name, each in row["contestants"].items()
        if name not in row["pair"]
    ]
    if others:
        parts += ["Peers without a target:", table(("case", "peer", "measured"), others)]
    parts += [
        "What the machine itself does, in the same run:",
        table(("", "measured"), ([name, told(each, "")] for name, each in found["limits"].items())),
    ]
    for name, why in found["not_measured"].items():
        parts.append(f"Not measured: {name} ({why}).")
    for failure in found["failures"]:
        parts.append(f"Failed: {failure}.")
    return parts


def endured(found: dict[str, Any]) -> list[str]:
    """The sections about `long_run.json`."""
    parts = [f"`python benchmarks/long_run.py`. {about(found)}"]
    if large := found.get("large_log"):
        head = ("case", "there", "small log", "ratio (range)", "bound", "target", "reached")
        parts.append(table(head, map(line, large["rows"])))
    if load := found.get("full_load"):
        parts.append(
            f"Full load for {load['minutes']:g} minutes, {figure(load['records_per_s'], 'rec/s')} "
            f"rec/s of {load['record_bytes']} bytes; resident MiB:"
        )
        parts.append(
            table(
                ("process", "minute 2", "last minute", "ratio", "target"),
                (
                    [
                        name,
                        f"{minutes[1]:,.0f}" if len(minutes) > 1 else "",
                        f"{minutes[-1]:,.0f}",
                        f"{load['growth'][name]:.3f}" if load["growth"][name] else "",
                        f"≤ {load['growth_max']:g}",
                    ]
                    for name, minutes in load["rss_mib_by_minute"].items()
                ),
            )
        )
    return parts


def plot_ratios(found: dict[str, Any]) -> None:
    """How far each row is beyond its target."""
    rows = [row for row in found["rows"] if row["target"] is not None and "ratio" in row][::-1]
    drawn, axes = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.2))
    for place, row in enumerate(rows):
        share = [row["ratio"]["median"], *row["ratio"]["range"]]
        beyond = [row["target"] / one if row["lower_is_better"] else one / row["target"]
                  for one in share]  # fmt: skip
        colour = "#2e7d32" if row["ratio"]["reached"] else "#9e9e9e"
        axes.plot(sorted(beyond[1:]), [place, place], color=colour, linewidth=3, alpha=0.5)
        axes.plot(beyond[0], place, "o", color=colour)
    axes.axvline(ALL, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    axes.set_xlabel("times better than the target (log); green: reached")
    _save(drawn, "ratios")


def plot_throughput(found: dict[str, Any]) -> None:
    """Both sides, side by side."""
    rows = [
        row
        for row in found["rows"]
        if row["unit"] == "rec/s" and row["pair"] == [OURS, KAFKA]
    ][::-1]  # fmt: skip
    drawn, axes = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.2))
    for shift, name in ((0.2, OURS), (-0.2, KAFKA)):
        for place, row in enumerate(rows):
            if each := row["contestants"].get(name):
                low, high = each["range"]
                at = place + shift
                axes.plot([low, high], [at, at], color=COLOURS[name], linewidth=3, alpha=0.5)
                axes.plot(each["median"], at, "o", color=COLOURS[name])
        axes.plot([], [], "o", color=COLOURS[name], label=name)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    axes.set_xlabel("records a second (log)")
    axes.legend()
    _save(drawn, "throughput")


def plot_memory(found: dict[str, Any]) -> None:
    """Of each process."""
    drawn, axes = plt.subplots(figsize=(8, 4))
    for name, minutes in found["full_load"]["rss_mib_by_minute"].items():
        axes.plot(range(1, len(minutes) + 1), minutes, marker="o", label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minute")
    axes.set_ylabel("resident MiB")
    axes.legend()
    _save(drawn, "long_run")


def _save(drawn: Any, name: str) -> None:  # noqa: ANN401 - of matplotlib
    PLOTS.mkdir(parents=True, exist_ok=True)
    drawn.tight_layout()
    # Neither a date nor random ids: the same figures give the same file.
    drawn.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    plt.close(drawn)


def plot(compare: dict[str, Any] | None, long_run: dict[str, Any] | None) -> None:
    """What there are figures for."""
    if plt is None:
        print("plots are not drawn: matplotlib is not installed (pip install matplotlib)")
        return
    mpl.rcParams["svg.hashsalt"] = "ray_stream"
    if compare:
        plot_ratios(compare)
        plot_throughput(compare)
    if long_run and "full_load" in long_run:
        plot_memory(long_run)


def shown(name: str) -> list[str]:
    """The reference to a plot, if it is there."""
    return [f"![{CAPTIONS[name]}](plots/{name}.svg)"] if (PLOTS / f"{name}.svg").exists() else []


def sections(
    compare: dict[str, Any] | None, many: dict[str, Any] | None, long_run: dict[str, Any] | None
) -> list[str]:
    """Everything that there are figures for."""
    parts = []
    if compare:
        parts += [*compared(compare), *shown("ratios"), *shown("throughput")]
    if many:
        parts += ["Thousands of partitions, each record fsynced:", table(HEAD, lines_of(many))]
    if long_run:
        parts += [*endured(long_run), *shown("long_run")]
    return parts


def main() -> int:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the files are")
    parser.add_argument("--print", action="store_true", help="print it, and leave the page alone")
    arguments = parser.parse_args()
    names = ("compare.json", "many_fsync.json", "long_run.json")
    compare, many, long_run = (loaded(arguments.results / name) for name in names)
    if compare is many is long_run is None:
        print(f"no whole run has left figures in {arguments.results} yet")
        return 0
    if arguments.print:
        print("\n\n".join(sections(compare, many, long_run)))
        return 0
    plot(compare, long_run)
    text = "\n\n".join(sections(compare, many, long_run))
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        print(f"{PAGE} has lost its markers {BEGIN} and {END}", file=sys.stderr)
        return 1
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
