"""The annotated picture of a result, drawn once however many sinks show it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import DEFAULT_TOP, draw_proposals
from edgerpn.runtime.frame import Result


class Painter:
    """Draws results; keeps the last picture for the next sink."""

    def __init__(self, *, top: int = DEFAULT_TOP) -> None:
        """Draws at most `top` boxes of each frame."""
        self._top = top
        self._last: tuple[Proposals, npt.NDArray[np.uint8]] | None = None

    def paint(self, result: Result) -> npt.NDArray[np.uint8]:
        """The picture of `result` with its boxes, (H, W, 3) uint8 BGR; shared, not to be changed."""
        # The result itself is not kept: its frame may lie in memory that the capture waits for.
        if self._last is None or self._last[0] is not result.proposals:
            self._last = (result.proposals, draw_proposals(result.image, result.proposals, top=self._top))
        return self._last[1]
