"""Images through a model and into files, in order, with all cores busy: each stage has threads and a bounded queue.

decoding threads -> batches -> the model's threads -> drawing and encoding threads -> the caller
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from edgerpn.export.prediction.config import PredictConfig
from edgerpn.export.prediction.inputs import Shot
from edgerpn.export.prediction.models import Predictor
from edgerpn.export.prediction.ordered import in_order
from edgerpn.proposals import Proposals

Value = TypeVar("Value")

_NOTHING = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


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
