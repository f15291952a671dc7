"""The images of an epoch: each once, or every folder of images equally often.

The numbers depend on (seed, epoch) only, so neither workers nor an interruption change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Balance = Literal["images", "folders"]

# Tags that separate the two random streams of (seed, epoch).
_ORDER, _SAMPLE = 0, 1


class Draw(NamedTuple):
    """One image of an epoch."""

    image: int
    """Number of the image."""
    repeat: int
    """How often the epoch drew this image before; each time it looks different."""


class Sampler:
    """Draws as many images per epoch as there are, in a new order each time."""

    def __init__(self, files: Sequence[Path], *, balance: Balance, seed: int) -> None:
        """Groups the images.

        Args:
            files: The image files, at least one.
            balance: `images`: each is drawn once per epoch. `folders`: their folders are drawn equally often; images
                of a small folder are drawn several times, those of a large one not in every epoch.
            seed: 0 or more.
        """
        groups: dict[Path | None, list[int]] = {}
        for index, file in enumerate(files):
            groups.setdefault(file.parent if balance == "folders" else None, []).append(index)
        self.count = len(files)
        """Images of an epoch."""
        self._groups = [np.array(group) for group in groups.values()]
        self._seed = seed

    def order(self, epoch: int) -> list[Draw]:
        """Returns the images of an epoch."""
        rng = random_numbers(self._seed, _ORDER, epoch)
        if len(self._groups) == 1:
            return [Draw(index, 0) for index in rng.permutation(self.count).tolist()]
        each, rest = divmod(self.count, len(self._groups))
        with_one_more = set(rng.permutation(len(self._groups))[:rest].tolist())
        draws: list[Draw] = []
        for number, group in enumerate(self._groups):
            share = each + (number in with_one_more)
            rounds = -(-share // len(group))
            own = [Draw(index, turn) for turn in range(rounds) for index in rng.permutation(group).tolist()]
            draws += own[:share]
        return [draws[place] for place in rng.permutation(self.count).tolist()]

    def draw_others(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draws `count` images for the other parts of a mosaic, with `balance` too."""
        if len(self._groups) == 1:
            return rng.integers(self.count, size=count).tolist()
        chosen = [self._groups[number] for number in rng.integers(len(self._groups), size=count).tolist()]
        return [int(group[int(rng.random() * len(group))]) for group in chosen]

    def numbers_of(self, draw: Draw, epoch: int) -> np.random.Generator:
        """Returns the source of all random numbers of a drawn image's view."""
        again = (draw.repeat,) if draw.repeat else ()
        return random_numbers(self._seed, _SAMPLE, epoch, draw.image, *again)


def random_numbers(seed: int, tag: int, *numbers: int) -> np.random.Generator:
    """Returns a generator of its own for each combination of arguments."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(tag, *numbers)))
