"""Proposals with classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from edgerpn.proposals import Proposals

CLASS_NAMES = ("fish", "crab", "größte Muschel")


def classed(
    proposals: Proposals,
    names: Sequence[str],
    class_scores: Sequence[float] | None = None,
    *,
    class_names: tuple[str, ...] = CLASS_NAMES,
) -> Proposals:
    """Returns the proposals with a class each, by its name, and with a score of it: the proposal's, unless given."""
    return dataclasses.replace(
        proposals,
        labels=np.array([class_names.index(name) for name in names], np.int32),
        class_scores=proposals.scores if class_scores is None else np.array(class_scores, np.float32),
        class_names=class_names,
    )
