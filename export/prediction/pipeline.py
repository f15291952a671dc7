"""Images through a model and into files, in order, with all cores busy: each stage has threads and a bounded queue.

decoding threads -> batches -> the model's threads -> drawing and encoding threads -> the caller
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgerpn.export.prediction.config import PredictConfig
from edgerpn.export.prediction.models import Predictor
from edgerpn.machine import threaded_map
from edgerpn.proposals import Proposals

Value = TypeVar("Value")

_NOTHING = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shot:
    """An image, or a frame of a video, to predict on."""

    index: int
    """Place among all images and frames, from 0."""
    image_id: int | str
    """Id in the results."""
    file_name: str
    """Name in the results, different from all others: a relative path with slashes."""
    path: Path
    """The file that it comes from."""
    frame: int | None
    """Number of the frame in its video, from 0; None: an image."""
    image: npt.NDArray[np.uint8] | None
    """(H, W, 3) uint8 BGR; None: it cannot be read."""
    problem: str = ""
    """The reason why it cannot be read."""
    damage: str = ""
    """The damage of an image that decodes nevertheless, in a sentence; empty: none is seen."""


def predict_shots(
    predictor: Predictor,
    config: PredictConfig,
    shots: Iterator[Shot],
    finish: Callable[[Shot, Proposals], Value],
    *,
    num_threads: int,
) -> Generator[Value, None, None]:
    """Runs the shots and yields finish(shot, proposals) for each, in order; one that cannot be read has no proposals.

    Args:
        predictor: The model.
        config: Choice of the proposals.
        shots: Taken in the caller's thread.
        finish: Called in `num_threads` threads.
        num_threads: Threads that draw and encode.

    Raises:
        InferenceError: The backend failed.
    """

    def run(batch: Sequence[Shot]) -> list[tuple[Shot, Proposals]]:
        images = [shot.image for shot in batch if shot.image is not None]
        found = iter(predictor.run(images) if images else ())
        return [(shot, _NOTHING if shot.image is None else choose(next(found), config)) for shot in batch]

    # In each queue wait as many as keep its threads busy.
    batches = _batches(shots, predictor.batch)
    num_workers = predictor.num_workers
    with closing(threaded_map(run, batches, num_threads=num_workers, ahead=num_workers + 2)) as results:
        pairs = itertools.chain.from_iterable(results)
        finished = threaded_map(lambda pair: finish(*pair), pairs, num_threads=num_threads, ahead=num_threads + 2)
        with closing(finished):
            yield from finished


def choose(proposals: Proposals, config: PredictConfig) -> Proposals:
    """Returns the proposals that the settings keep, best first."""
    kept = proposals.above(config.min_score) if config.min_score > 0 else proposals
    return kept.nms(config.nms_iou, limit=config.max_per_image or None)


def _batches(shots: Iterator[Shot], size: int) -> Iterator[list[Shot]]:
    while batch := list(itertools.islice(shots, size)):
        yield batch
