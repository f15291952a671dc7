"""The training loop: one function that reads top to bottom, and the state that it carries.

for each epoch: for each batch: forward, assign, losses, backward, step; log
at evenly spread points: evaluate the averaged weights, save last.pt (and best.pt when AR@100 rose)
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from edgerpn.errors import TrainingDivergedError
from edgerpn.progress import Bar, progress
from edgerpn.train.assign import assign, sample
from edgerpn.train.config import TrainSettings
from edgerpn.train.detector import Detector
from edgerpn.train.device import place
from edgerpn.train.loader import Batch
from edgerpn.train.loss import Losses, rpn_losses
from edgerpn.train.model import Rpn
from edgerpn.train.optimizer import learning_rate
from edgerpn.train.run_folder import RunFolder
from edgerpn.train.run_state import Run, save, set_up
from edgerpn.train.validation import measure

SAVE_EVERY_S = 60.0
"""Seconds after which the end of an epoch saves last.pt even without an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a run left behind."""

    best: Path
    """Checkpoint with the best AR@100."""
    last: Path
    """Checkpoint to resume from."""
    history: list[dict[str, float]]
    """Rows of log.csv."""
    metrics: dict[str, float]
    """Recall of `best`; empty when the run was interrupted before its first evaluation."""
    interrupted: bool
    """Whether SIGINT or SIGTERM ended the run."""


def train(
    settings: TrainSettings,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    backbone_weights: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Trains a network on a COCO folder.

    Args:
        settings: Resolved settings.
        data: Folder with train.json, val.json and images/.
        out: Folder of the run; made when missing.
        resume: Go on from `out`/last.pt; with the same settings the numbers are those of an uninterrupted run.
        backbone_weights: torchvision state dict to start the backbone from.
        say: Called with one line of text for people, now and then.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the machine, or `out` holds a run already.
        TrainingDivergedError: The loss is not finite.
    """
    run = set_up(settings, data, RunFolder(out), resume, backbone_weights, say)
    state, folder = run.progress, run.folder
    started = time.monotonic() - state.seconds
    logged_at, saved_at, logged_step = state.seconds, state.seconds, state.step
    with run.loader, _stop_signals() as stop, _bar(run) as bar, _flushed(folder):
        while run.fraction < 1 and not stop:
            for batch in run.loader.epoch(state.epoch, start_batch=state.batch):
                losses, grad_norm, rate = _step(run, batch)
                state.step += 1
                state.batch += 1
                state.seconds = time.monotonic() - started
                _move_bar(bar, run, losses)
                if state.step % settings.loop.log_every == 0 or state.step == 1:
                    speed = (state.step - logged_step) * settings.data.batch_size / (state.seconds - logged_at)
                    logged_at, logged_step = state.seconds, state.step
                    _log(run, losses, grad_norm, rate, speed)
                if run.fraction >= (state.evaluations + 1) / settings.loop.evaluations:
                    _evaluate(run, say)
                    state.seconds = logged_at = saved_at = time.monotonic() - started
                if stop or run.fraction >= 1:
                    break
            if state.batch >= run.loader.batches_per_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
            if state.seconds - saved_at > SAVE_EVERY_S and not stop:
                save(run, is_best=False)
                saved_at = state.seconds
    if stop:
        save(run, is_best=not folder.best.exists())
        say(f"interrupted at step {state.step}; go on with --resume")
    return TrainResult(
        best=folder.best,
        last=folder.last,
        history=folder.rows,
        metrics=state.best_metrics,
        interrupted=bool(stop),
    )


def _step(run: Run, batch: Batch) -> tuple[Losses, float, float]:
    """One optimizer step; returns the losses, the norm of the gradient and the learning rate."""
    settings, state, compute = run.settings, run.progress, run.compute
    rate = learning_rate(state.step, run.fraction, settings.optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.model.train()
    batch = batch.to(compute.device, non_blocking=True)
    images = run.model.normalize(batch.images)
    with compute.autocast():
        levels = run.model(images)
    losses = _losses(run, batch, levels)
    if not math.isfinite(losses.total.item()):
        raise _diverged(run, batch, "the loss is not finite")
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(losses.total).backward()
    run.scaler.unscale_(run.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(run.model.parameters(), settings.optimizer.max_grad_norm).item()
    if not math.isfinite(grad_norm) and not run.scaler.is_enabled():
        raise _diverged(run, batch, "the gradient is not finite")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.average.update(run.model)
    return losses, grad_norm, rate


def _losses(run: Run, batch: Batch, levels: list[tuple[Tensor, Tensor]]) -> Losses:
    settings, device = run.settings, run.compute.device
    assignment = assign(
        run.anchors,
        batch.gt_boxes,
        batch.gt_mask,
        batch.ignore_boxes,
        batch.ignore_mask,
        image_hw=settings.data.input_hw,
        config=settings.assign,
    )
    # A generator of its own for each step makes the draw independent of where the run was interrupted.
    generator = torch.Generator(device).manual_seed(settings.loop.seed * 1_000_003 + run.progress.step)
    return rpn_losses(
        torch.cat([logits for logits, _ in levels], dim=1),
        torch.cat([deltas for _, deltas in levels], dim=1),
        torch.cat(run.anchors),
        assignment,
        sample(assignment.labels_NA, config=settings.assign, generator=generator),
        batch.gt_boxes,
        config=settings.loss,
    )


def _diverged(run: Run, batch: Batch, what: str) -> TrainingDivergedError:
    last_good = str(run.folder.last) if run.folder.last.exists() else None
    return TrainingDivergedError(
        f"{what} at step {run.progress.step} (epoch {run.progress.epoch}), images {batch.image_ids}. "
        f"Last good checkpoint: {last_good or 'none yet'}. "
        "Lower optimizer.learning_rate or raise optimizer.warmup_steps, or look at these images.",
        step=run.progress.step,
        image_ids=batch.image_ids,
        last_good=last_good,
    )


def _evaluate(run: Run, say: Callable[[str], None]) -> None:
    """Evaluates the averaged weights, logs, and saves."""
    state, settings = run.progress, run.settings
    model = Rpn(settings.model)
    model.load_state_dict(run.weights)
    detector = Detector(
        model.eval(),
        # AR@1000 needs as many proposals; the counts of `proposals` are what an export takes by default.
        dataclasses.replace(settings.proposals, num_proposals=1000, score_threshold=0.0),
        network_hw=settings.data.input_hw,
    )
    metrics = measure(place(detector, run.compute.device), run.val_set)
    state.evaluations += 1
    is_best = metrics["AR@100"] > state.best_ar100
    if is_best:
        state.best_ar100, state.best_metrics = metrics["AR@100"], metrics
    shown = {name: metrics[name] for name in ("AR@10", "AR@100", "AR@1000")}
    run.folder.append({"step": state.step, "epoch": state.epoch, "seconds": state.seconds, **shown})
    if run.tensorboard is not None:
        for name, value in shown.items():
            run.tensorboard.add_scalar(f"val/{name}", value, state.step)
    figures = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
    say(f"step {state.step}, {state.seconds / 60:.1f} min: {figures}{' (best)' if is_best else ''}")
    save(run, is_best=is_best, metrics=metrics)
    run.folder.flush()


def _log(run: Run, losses: Losses, grad_norm: float, rate: float, images_per_s: float) -> None:
    state = run.progress
    row = {
        "loss": losses.total.item(),
        "objectness": losses.objectness.item(),
        "box": losses.box.item(),
        "objects": float(losses.num_objects.item()),
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "images_per_s": images_per_s,
    }
    run.folder.append({"step": state.step, "epoch": state.epoch, "seconds": state.seconds, **row})
    if run.tensorboard is not None:
        for name, value in row.items():
            run.tensorboard.add_scalar(f"train/{name}", value, state.step)


def _bar(run: Run) -> progress:
    """A bar over seconds when the run has a time, else over steps."""
    loop = run.settings.loop
    if loop.minutes:
        return progress(60 * loop.minutes, "training", unit="s")
    return progress(loop.epochs * run.loader.batches_per_epoch, "training", unit="step")


def _move_bar(bar: Bar, run: Run, losses: Losses) -> None:
    done = run.progress.seconds if run.settings.loop.minutes else float(run.progress.step)
    bar.update(round(done - getattr(bar, "n", done), 1))
    if run.progress.step % 10 == 0:
        bar.set_postfix_str(f"epoch {run.progress.epoch}, loss {losses.total.item():.3f}", refresh=False)


@contextmanager
def _flushed(folder: RunFolder) -> Iterator[None]:
    """Writes log and plot at the end, also when the run fails: the rows before a failure tell why."""
    try:
        yield
    finally:
        folder.flush()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Gives a list that SIGINT and SIGTERM fill; the loop ends after its step. A second signal acts as usual."""
    received: list[int] = []
    old: dict[int, Any] = {}
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, old[number])

    try:
        for number in numbers:
            old[number] = signal.getsignal(number)
            signal.signal(number, receive)
    except ValueError:
        old.clear()  # not the main thread: its owner handles signals
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
