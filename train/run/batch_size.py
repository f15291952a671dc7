"""The batch size of a step: checked against the number of processes, or chosen automatically."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from edgerpn.errors import ConfigError
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.augment import NUM_TILES
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.learning.assign import assign, sample
from edgerpn.train.learning.loss import rpn_losses
from edgerpn.train.learning.optimizer import make_optimizer, scaled_learning_rate
from edgerpn.train.learning.regions import region_losses, sample_regions
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.model import Rpn, RpnWithMaps
from edgerpn.train.run.device import Compute, place
from edgerpn.train.run.failures import is_out_of_memory
from edgerpn.train.run.ranks import Ranks

_MAX_IMAGES = 256
"""Largest number of images in one pass that is tried: with more, a run has too few steps to learn from."""
_LARGEST_SHARE = 0.85
"""Largest share of the GPU's memory to use; the rest is for fragmentation and crowded images."""


def resolve_batch_size(
    settings: TrainSettings,
    records: Sequence[ImageRecord],
    ranks: Ranks,
    compute: Compute,
    log: Callable[[str], None],
) -> TrainSettings:
    """Returns the settings with a batch size that the processes can share; replaces 0 and scales the learning rate.

    Raises:
        ConfigError: The batch cannot be divided evenly, the data set is too small, or not even one image fits.
    """
    parts = ranks.size * settings.loop.accumulate
    size = settings.data.batch_size
    if len(records) < parts and not size:
        raise ConfigError(
            [
                f"data.batch_size: expected at least {parts} images ({ranks.size} processes x loop.accumulate "
                f"{settings.loop.accumulate}), got a data set of {len(records)}; use fewer processes or passes"
            ]
        )
    if size:
        if size % parts or len(records) < parts:
            raise ConfigError(
                [
                    f"data.batch_size: expected a multiple of {parts} ({ranks.size} processes x loop.accumulate "
                    f"{settings.loop.accumulate}) and a data set of at least as many images, got {size} and "
                    f"{len(records)} images"
                ]
            )
        return settings
    reference = settings.optimizer.reference_batch_size
    if compute.device.type == "cuda":
        trial = _TrialSteps(settings, records, compute)
        limit = min(_MAX_IMAGES, len(records) // parts)
        size = parts * ranks.minimum(largest_that_fits(trial.fits, limit))
        trial.clear()
        why = f"the largest power of 2 that {'each GPU' if ranks.size > 1 else 'the GPU'} holds"
        if not size:
            raise ConfigError(
                ["data.batch_size: not even one image fits into the GPU's memory; choose a smaller --size"]
            )
    else:
        size = parts * min(-(-reference // parts), len(records) // parts)
        why = "the default on a CPU"
    rate = scaled_learning_rate(settings.optimizer, size)
    log(
        f"data.batch_size: {size} images per step, {why}; optimizer.learning_rate: {rate:.3g}, "
        f"because {settings.optimizer.learning_rate:.3g} is meant for {reference} images"
    )
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, batch_size=size),
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=rate),
    )


def largest_that_fits(fits: Callable[[int], bool], limit: int) -> int:
    """Returns the largest power of 2 up to `limit` for which `fits` is true, by doubling; 0 if 1 does not fit."""
    size = 0
    trial = 1
    while trial <= limit and fits(trial):
        size, trial = trial, 2 * trial
    return size


class _TrialSteps:
    """Trial steps on a separate network, with empty images as crowded as the most crowded one of the data set."""

    def __init__(self, settings: TrainSettings, records: Sequence[ImageRecord], compute: Compute) -> None:
        self._settings, self._compute = settings, compute
        self._model = place(Rpn(settings.model), compute.device)
        self._optimizer = make_optimizer(self._model, settings.optimizer)
        # The largest views of the run need the most memory.
        self._view_hw = max(settings.data.views_hw, key=math.prod)
        self._anchors = [a.to(compute.device) for a in grid_anchors(settings.model.anchors, self._view_hw)]
        shown = NUM_TILES if settings.data.augment.mosaic_probability else 1
        self._num_boxes = shown * max(1, *(len(record.boxes_xyxy) for record in records))
        self._num_ignored = shown * max(1, *(len(record.ignore_xyxy) + len(record.boxes_xyxy) for record in records))

    def fits(self, size: int) -> bool:
        """Returns whether a step with `size` images leaves enough of the GPU's memory free."""
        device = self._compute.device
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free, total = torch.cuda.mem_get_info(device)
        available = free + torch.cuda.memory_reserved(device)
        try:
            self._step(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_reserved(device) <= _LARGEST_SHARE * min(available, total)

    def clear(self) -> None:
        del self._model, self._optimizer, self._anchors
        torch.cuda.empty_cache()

    def _step(self, size: int) -> None:
        settings, device = self._settings, self._compute.device
        height, width = self._view_hw
        frames = torch.zeros(size, height, width, 3, dtype=torch.uint8, device=device)
        is_box = torch.ones(size, self._num_boxes, dtype=torch.bool, device=device)
        batch = TrainBatch(
            images=frames,
            gt_boxes=torch.tensor([0.0, 0.0, width / 2, height / 2], device=device).expand(*is_box.shape, 4),
            gt_mask=is_box,
            gt_labels=torch.zeros_like(is_box, dtype=torch.int64),
            ignore_boxes=torch.zeros(size, self._num_ignored, 4, device=device),
            ignore_mask=torch.ones(size, self._num_ignored, dtype=torch.bool, device=device),
            image_ids=[],
        )
        with self._compute.autocast():
            maps, levels = RpnWithMaps(self._model)(self._model.normalize(frames))
        assignment = assign(
            self._anchors,
            batch.gt_boxes,
            batch.gt_mask,
            batch.ignore_boxes,
            batch.ignore_mask,
            image_hw=self._view_hw,
            config=settings.assign,
        )
        generator = torch.Generator(device).manual_seed(0)
        losses = rpn_losses(
            torch.cat([logits for logits, _ in levels], dim=1),
            torch.cat([deltas for _, deltas in levels], dim=1),
            torch.cat(self._anchors),
            assignment,
            sample(assignment.labels_NA, config=settings.assign, generator=generator),
            batch.gt_boxes,
            config=settings.loss,
        )
        total = losses.total
        if self._model.region_head is not None:
            regions = sample_regions(
                levels,
                self._anchors,
                batch,
                config=settings.regions,
                ignore_ioa=settings.assign.ignore_ioa,
                generator=generator,
                part=(0, size),
            )
            strides = settings.model.anchors.strides_px
            with self._compute.autocast():
                found = region_losses(self._model.region_head, maps, regions, strides_px=strides, config=settings.loss)
            total = total + found.classes + found.boxes
        total.backward()
        self._optimizer.step()
