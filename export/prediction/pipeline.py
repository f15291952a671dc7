"""Images through a model and into files, in order, with all cores busy: each stage has threads and a bounded queue.

decoding threads -> batches -> the model's threads -> drawing and encoding threads -> the caller
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgerpn.export.prediction.config import PredictConfig
from edgerpn.export.prediction.models import Predictor
from edgerpn.proposals import Proposals

Item = TypeVar("Item")
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


def in_order(
    pool: Executor, function: Callable[[Item], Value], items: Iterable[Item], *, ahead: int
) -> Iterator[Value]:
    """Yields function(item) for each of `items`, in order, computed by `pool`.

    Args:
        pool: Its threads compute.
        function: Its error is raised in place of the value.
        items: May be endless; taken in the caller's thread.
        ahead: Values that are computed or wait, at most, beside the one to yield next.
    """
    waiting: deque[Future[Value]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


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

    with (
        ThreadPoolExecutor(predictor.num_workers, thread_name_prefix="edgerpn-predict") as model_pool,
        ThreadPoolExecutor(num_threads, thread_name_prefix="edgerpn-write") as write_pool,
    ):
        results = in_order(model_pool, run, _batches(shots, predictor.batch), ahead=predictor.num_workers + 1)
        pairs = itertools.chain.from_iterable(results)
        yield from in_order(write_pool, lambda pair: finish(*pair), pairs, ahead=num_threads + 2)


def choose(proposals: Proposals, config: PredictConfig) -> Proposals:
    """Returns the proposals that the settings keep, best first."""
    kept = proposals.above(config.min_score) if config.min_score > 0 else proposals
    return kept.nms(config.nms_iou, limit=config.max_per_image or None)


def _batches(shots: Iterator[Shot], size: int) -> Iterator[list[Shot]]:
    while batch := list(itertools.islice(shots, size)):
        yield batch
