"""One optimizer step, over the parts of a batch that belong to this process.

The losses remain sums until all parts of all processes are complete; then the gradients are divided by the common
normalizer. Steps therefore do not depend on how a batch is divided, up to rounding (with `loop.accumulate`, up to the
statistics of batch norm, which are those of one pass; with classes, up to the weight of each part in the mean over the
second stage's boxes).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgerpn.errors import TrainingDivergedError
from edgerpn.train.config import SEEDS, TrainSettings
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.learning.assign import Assignment, assign, sample
from edgerpn.train.learning.loss import LossSums, rpn_loss_sums
from edgerpn.train.learning.optimizer import learning_rate, scale_gradients
from edgerpn.train.learning.regions import region_losses, sample_regions
from edgerpn.train.network.layers import FIRST_STEPS, set_norm_momentum
from edgerpn.train.run.failures import is_out_of_memory
from edgerpn.train.run.state import TrainingRun

Network = Callable[[Tensor], tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]
"""As `RpnWithMaps`."""

LossFunction = Callable[[TrainingRun, TrainBatch, int], LossSums]
"""As `loss_sums`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFigures:
    """Numbers of one step, over all processes."""

    loss: float
    objectness: float
    box: float
    objects: float
    grad_norm: float
    region_class: float
    region_box: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step; its numbers may still be in transit from the device while the next step starts."""

    step: int
    """Number of the step, from 0."""
    epoch: int
    """Number of the epoch, from 0."""
    image_ids: tuple[ImageId, ...]
    """COCO ids of this process's images."""
    learning_rate: float
    """Rate of the step."""
    host_values: Tensor
    """The numbers of `StepFigures` in their order, on the CPU; valid after `arrival`."""
    arrival: torch.cuda.Event | None
    """Event after which `host_values` is valid; None: it already is."""

    def figures(self) -> StepFigures:
        """Returns the numbers; waits for the step to end."""
        if self.arrival is not None:
            self.arrival.synchronize()
        names = (field.name for field in dataclasses.fields(StepFigures))
        return StepFigures(**dict(zip(names, self.host_values.tolist(), strict=True)))


def loss_sums(run: TrainingRun, batch: TrainBatch, part: int) -> LossSums:
    """Computes the losses of a part of a step's images, without those of other parts and processes.

    Args:
        run: The run; its network takes the images.
        batch: The images and their boxes, on the run's device.
        part: Number of the part among the passes of the step, from 0.
    """
    settings, device = run.settings, run.compute.device
    images = run.model.normalize(batch.images)
    with run.compute.autocast():
        maps, levels = run.network(images)
    logits, deltas = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    assignment = assign_batch(run, batch)
    # A generator per step makes the samples independent of where the run was interrupted.
    generator = torch.Generator(device).manual_seed((settings.loop.seed * 1_000_003 + run.progress.step) % SEEDS)
    place = (part * run.ranks.size + run.ranks.rank) * len(batch.images), run.loader.batch_size
    anchors = run.anchors_of(batch.view_hw)
    sums = rpn_loss_sums(
        logits,
        deltas,
        torch.cat(anchors),
        assignment,
        sample(assignment.labels_NA, config=settings.assign, generator=generator, part=place),
        batch.gt_boxes,
        config=settings.loss,
    )
    head = run.model.region_head
    if head is None:
        return sums
    regions = sample_regions(
        levels,
        anchors,
        batch,
        config=settings.regions,
        ignore_ioa=settings.assign.ignore_ioa,
        generator=generator,
        part=place,
    )
    with run.compute.autocast():
        found = region_losses(head, maps, regions, strides_px=settings.model.anchors.strides_px, config=settings.loss)
    # The step divides by the normalizer, which counts objects: sums over the samples would be huge where these are few.
    weight = sums.normalizer.clamp(min=len(batch.images) / run.loader.batch_size)
    return dataclasses.replace(sums, region_class=found.classes * weight, region_box=found.boxes * weight)


def assign_batch(run: TrainingRun, batch: TrainBatch) -> Assignment:
    """Assigns the anchors of a batch's views to its boxes."""
    return assign(
        run.anchors_of(batch.view_hw),
        batch.gt_boxes,
        batch.gt_mask,
        batch.ignore_boxes,
        batch.ignore_mask,
        image_hw=batch.view_hw,
        config=run.settings.assign,
    )


def take_step(run: TrainingRun, batches: Sequence[TrainBatch], loss_function: LossFunction = loss_sums) -> StepRecord:
    """Runs forward and backward passes of each part, then one step of the optimizer and of the average."""
    settings, state, compute = run.settings, run.progress, run.compute
    rate = learning_rate(state.step, run.fraction, settings.optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.model.train()
    set_norm_momentum(run.model, state.step)
    run.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(6, device=compute.device)
    for part, batch in enumerate(batches):
        on_device = batch.to(compute.device, non_blocking=True)
        with _local_gradients(run, is_last=part == len(batches) - 1):
            losses = loss_function(run, on_device, part)
            # Divided by the number of images, so that the sums are as large as losses and do not overflow float16.
            parts = _parts(losses)
            run.scaler.scale(_total(settings, parts) / run.loader.batch_size).backward()
        sums += torch.stack((*(each.detach() for each in parts), losses.normalizer, losses.num_objects.float()))
    run.ranks.all_reduce_sum(sums)
    *parts, normalizer, objects = sums.unbind()
    normalizer = normalizer.clamp(min=1)
    run.scaler.unscale_(run.optimizer)
    # DistributedDataParallel averages over the processes, but these gradients belong to a sum.
    factor = run.loader.batch_size * run.ranks.size / normalizer
    grad_norm = scale_gradients(run.parameters, factor, settings.optimizer.max_grad_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.average.update()
    total, objectness, box, region_class, region_box = (each / normalizer for each in (_total(settings, parts), *parts))
    values = torch.stack((total, objectness, box, objects, grad_norm, region_class, region_box))
    host_values, arrival = _to_host(values)
    return StepRecord(
        step=state.step,
        epoch=state.epoch,
        image_ids=tuple(image_id for batch in batches for image_id in batch.image_ids),
        learning_rate=rate,
        host_values=host_values,
        arrival=arrival,
    )


def _parts(losses: LossSums) -> list[Tensor]:
    """Returns objectness, box, class and corrected boxes; zeros without a second stage."""
    zero = torch.zeros_like(losses.box, requires_grad=False)
    further = (losses.region_class, losses.region_box)
    return [losses.objectness, losses.box, *(zero if part is None else part for part in further)]


def _total(settings: TrainSettings, parts: Sequence[Tensor]) -> Tensor:
    """Returns the weighted sum of the losses in the order of `_parts`."""
    objectness, box, region_class, region_box = parts
    of_regions = settings.regions.class_weight * region_class + settings.regions.box_weight * region_box
    return objectness + settings.loss.box_weight * box + of_regions


def check_finite(run: TrainingRun, record: StepRecord) -> StepFigures:
    """Returns the numbers of a step.

    Raises:
        TrainingDivergedError: They are not finite.
    """
    figures = record.figures()
    if not math.isfinite(figures.loss):
        raise _diverged(run, record, "the loss is not finite")
    # With float16 the scaler skipped such a step and lowered the scale of the gradients.
    if not math.isfinite(figures.grad_norm) and not run.scaler.is_enabled():
        raise _diverged(run, record, "the gradient is not finite")
    return figures


def _local_gradients(run: TrainingRun, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Keeps the gradients of all parts but the last in this process; the last part exchanges the sum."""
    if is_last or run.parallel is None:
        return contextlib.nullcontext()
    return run.parallel.no_sync()


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if values.device.type != "cuda":
        return values, None
    host_values = values.to("cpu", non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return host_values, arrival


def _diverged(run: TrainingRun, record: StepRecord, what: str) -> TrainingDivergedError:
    last_good = str(run.folder.newest_intact) if run.folder.newest_intact is not None else None
    unknown = "none yet" if run.ranks.is_first else "the first process names it"
    mosaics = " and images in their mosaics" if run.settings.data.augment.mosaic_probability else ""
    return TrainingDivergedError(
        f"{what} at step {record.step} (epoch {record.epoch}), images {list(record.image_ids)}{mosaics}. "
        f"Last good checkpoint: {last_good or unknown}. "
        "Lower optimizer.learning_rate or raise optimizer.warmup_steps, or look at these images.",
        step=record.step,
        image_ids=record.image_ids,
        last_good=last_good,
    )


def compile_network(network: nn.Module, run: TrainingRun, log: Callable[[str], None]) -> Network:
    """Compiles the network for the run's batches; logs the reason and returns `network` itself if that fails.

    Only for a single process: several could not agree on success without a hang of their collectives. torch.compile
    works at first use, so a trial pass shows here whether it succeeds; weights, gradients and statistics stay as they
    were. The first steps of a run use the plain network: each has another batch-norm momentum, and each momentum would
    need a program.
    """
    log("loop.compile: compiling the network, which takes a while ...")
    fast: Network = torch.compile(network, dynamic=False)
    size = run.loader.batch_size // run.settings.loop.accumulate
    set_norm_momentum(network, FIRST_STEPS)
    before = [buffer.clone() for buffer in run.model.buffers()]
    network.train()
    try:
        # Each size of the views needs its own program.
        for view_hw in dict.fromkeys(run.settings.data.views_hw):
            _trial_pass(fast, torch.zeros(size, 3, *view_hw, device=run.compute.device), run)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        log(f"loop.compile: not possible here, training continues without it ({(lines or [type(error).__name__])[0]})")
        return network
    finally:
        for buffer, value in zip(run.model.buffers(), before, strict=True):
            buffer.copy_(value)
        run.optimizer.zero_grad(set_to_none=True)
    return lambda images: (fast if run.progress.step >= FIRST_STEPS else network)(images)


def _trial_pass(network: Network, images: Tensor, run: TrainingRun) -> None:
    with run.compute.autocast():
        _, levels = network(images.contiguous(memory_format=torch.channels_last))
    total = torch.zeros((), device=images.device)
    sum((logits.sum() + deltas.sum() for logits, deltas in levels), total).backward()
