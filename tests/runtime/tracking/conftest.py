"""Proposals of made-up objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgerpn.proposals import Proposals


@pytest.fixture(scope="session")
def propose() -> Callable[..., Proposals]:
    """Makes proposals of (x, y) squares of one size, best first."""

    def make(*places: tuple[float, float], scores: Sequence[float] | None = None, size: float = 40) -> Proposals:
        corners = np.array(places, np.float32).reshape(-1, 2)
        graded = np.linspace(0.9, 0.8, len(corners)) if scores is None else np.array(scores)
        return Proposals(np.concatenate([corners, corners + size], axis=1), graded.astype(np.float32))

    return make
