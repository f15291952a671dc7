"""The best pairs: as good as SciPy's, and never a pair without gain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from edgerpn.runtime.tracking.assignment import best_pairs


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 5), (4, 9), (9, 4), (30, 40)])
def test_the_sum_of_gains_is_that_of_scipy(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    for round_ in range(40):
        gains = rng.random(shape)
        if round_ % 4 == 1:
            # As IoUs are: most objects touch few others.
            gains[gains < 0.7] = 0.0
        elif round_ % 4 == 2:
            gains = np.round(gains, 1)
        elif round_ % 4 == 3:
            gains -= 0.5
        pairs = best_pairs(gains)
        rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
        assert rows == sorted(set(rows))
        assert len(set(columns)) == len(columns)
        assert all(gains[pair] > 0 for pair in pairs)
        best = np.maximum(gains, 0)
        expected = best[linear_sum_assignment(best, maximize=True)].sum()
        assert sum(gains[pair] for pair in pairs) == pytest.approx(expected, abs=1e-9)


def test_groups_without_members_have_no_pairs() -> None:
    for shape in ((0, 0), (0, 3), (3, 0)):
        assert best_pairs(np.zeros(shape)) == []


def test_a_better_sum_wins_over_a_better_single_pair() -> None:
    assert best_pairs(np.array([[0.9, 0.8], [0.8, 0.1]])) == [(0, 1), (1, 0)]
