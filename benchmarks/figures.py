"""What may be said of repeated measurements: medians, ranges, and how sure a ratio is.

Owns: the statistics. Refuses: measuring.

The bound of a ratio is taken from order statistics, so that nothing is assumed about how figures
are spread. Each repetition gives one ratio of two neighbours in time. Of n ratios the k-th lowest
lies above the true median with probability P(Binomial(n, 1/2) < k); k is the largest for which that
is at most 10 %. With 5 or 6 repetitions it is the lowest ratio, with 7 or 8 the second lowest; with
fewer than 4 there is none. (A bootstrap over 5 repetitions gives the second lowest, and holds 81 %
of the time instead of the 90 % that it names.)
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

CONFIDENCE = 0.9
OURS, KAFKA = "ray_stream", "kafka"


def bound_rank(count: int) -> int:
    """Which of so many sorted ratios bounds their median; 0: none does."""
    rank, below = 0, 0.0
    while rank < count:
        below += math.comb(count, rank) / 2**count
        if below > 1 - CONFIDENCE:
            break
        rank += 1
    return rank


def spread(figures: Sequence[float]) -> dict[str, object]:
    """Median, range, and every figure in the order of the repetitions."""
    return {
        "median": statistics.median(figures),
        "range": [min(figures), max(figures)],
        "figures": list(figures),
    }


@dataclass
class Row:
    """One line of the table: what is compared, and what its ratio is to be."""

    name: str
    unit: str
    target: float | None = None
    """Of the ratio of the first contestant to the second; None: no target."""
    lower_is_better: bool = False
    pair: tuple[str, str] = (OURS, KAFKA)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contestant: str, figure: float) -> None:
        """One repetition's."""
        self.figures.setdefault(contestant, []).append(figure)

    def summary(self) -> dict[str, object]:
        """For the file of results."""
        told: dict[str, object] = {
            "row": self.name,
            "unit": self.unit,
            "target": self.target,
            "lower_is_better": self.lower_is_better,
            "pair": list(self.pair),
            "contestants": {name: spread(figures) for name, figures in self.figures.items()},
        }
        first, second = (self.figures.get(name, []) for name in self.pair)
        if first and len(first) == len(second):
            told["ratio"] = self._ratio([a / b for a, b in zip(first, second, strict=True)])
        return told

    def _ratio(self, ratios: list[float]) -> dict[str, object]:
        """Its spread, the bound on the side that could disappoint, and whether that suffices."""
        worst_first = sorted(ratios, reverse=self.lower_is_better)
        rank = bound_rank(len(ratios))
        bound = worst_first[rank - 1] if rank else None
        reached = None
        if bound is not None and self.target is not None:
            reached = bound <= self.target if self.lower_is_better else bound >= self.target
        return {**spread(ratios), "bound": bound, "reached": reached}


def quantile(sorted_figures: Sequence[float], share: float) -> float:
    """The figure below which that share of them is."""
    return sorted_figures[min(len(sorted_figures) - 1, int(len(sorted_figures) * share))]
