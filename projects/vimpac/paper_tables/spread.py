"""Mean, spread, and what a difference of few runs can tell."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (any table of them).
_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Spread:
    """Some values of one kind.

    Attributes:
        mean: of the values.
        std: sample standard deviation; None for one value.
        count: number of values.
    """

    mean: float
    std: float | None
    count: int

    def shown(self, digits: int = 1) -> str:
        """Mean and standard deviation, "12.3 ± 0.4", or the value alone."""
        text = f"{self.mean:.{digits}f}"
        return text if self.std is None else f"{text} ± {self.std:.{digits}f}"


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def half_width(differences: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean of paired differences (Student's t).

    With more than eleven values the quantile of ten degrees of freedom is used, which is too wide
    rather than too narrow.

    Returns:
        Infinity for less than two values.
    """
    if len(differences) < 2:
        return math.inf
    quantile = _T_QUANTILES[min(len(differences) - 1, len(_T_QUANTILES)) - 1]
    return quantile * statistics.stdev(differences) / math.sqrt(len(differences))


def chance_width(shares: Sequence[tuple[float, int]], seeds: int) -> float:
    """Half of the 95 % interval of a mean difference of accuracies, by the test videos alone.

    Each accuracy is taken for one of so many independent answers, which makes the interval rather
    too wide where two models are tested on the same videos. It keeps differences of a video or two
    that happen to be alike in all seeds from being taken for more. Two right and two wrong answers
    are added to each (Agresti and Coull, 1998), without which 100 % would be taken for certain.

    Args:
        shares: share of right answers and number of test videos, of all rows and seeds.
        seeds: over so many the difference is averaged.

    Returns:
        In points; 0 without shares.
    """
    variance = sum(_variance(share, videos) for share, videos in shares)
    return 100 * 1.96 * math.sqrt(variance) / seeds


def _variance(share: float, videos: int) -> float:
    adjusted = (share * videos + 2) / (videos + 4)
    return adjusted * (1 - adjusted) / (videos + 4)
