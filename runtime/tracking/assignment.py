"""The best pairs of two small groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def best_pairs(gains: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Returns the pairs of rows and columns with the largest sum of gains, each row and column in one pair at most.

    Exact: shortest augmenting paths with potentials, one row after the other.

    Args:
        gains: (R, C) float64, finite. A gain of 0 or less is never a pair.

    Source: Kuhn 1955; in this form Jonker and Volgenant 1987, without their initial reduction.
    """
    if gains.shape[0] > gains.shape[1]:
        return sorted((row, column) for column, row in best_pairs(gains.T))
    # A pair without gain stands for a row that stays alone, so that every row gets a column.
    costs = -np.maximum(gains, 0.0)
    num_rows, num_columns = costs.shape
    row_potentials, column_potentials = np.zeros(num_rows), np.zeros(num_columns)
    row_of = np.full(num_columns, -1)
    for start in range(num_rows):
        # Dijkstra over reduced costs, from the new row to the nearest free column.
        distances, before = np.full(num_columns, np.inf), np.full(num_columns, -1)
        is_done = np.zeros(num_columns, bool)
        row, column, distance = start, -1, 0.0
        while row >= 0:
            ahead = distance + costs[row] - row_potentials[row] - column_potentials
            is_nearer = ~is_done & (ahead < distances)
            distances[is_nearer], before[is_nearer] = ahead[is_nearer], column
            column = int(np.where(is_done, np.inf, distances).argmin())
            distance, row = distances[column], row_of[column]
            is_done[column] = True
        passed = is_done & (row_of >= 0)
        row_potentials[start] += distance
        row_potentials[row_of[passed]] += distance - distances[passed]
        column_potentials[passed] -= distance - distances[passed]
        while before[column] >= 0:
            row_of[column], column = row_of[before[column]], before[column]
        row_of[column] = start
    return [(int(row_of[c]), int(c)) for c in np.argsort(row_of) if row_of[c] >= 0 and gains[row_of[c], c] > 0]
