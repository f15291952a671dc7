"""The training loop: one function that reads top to bottom.

for each epoch: for each batch: one step; log
at evenly spaced points: evaluate the averaged weights, save last.pt (and best.pt if AR@100, or AP with classes, rose)
in between: save last.pt when it is due
"""

from __future__ import annotations

import signal
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgerpn.errors import DataError
from edgerpn.machine import StopOnSignal
from edgerpn.progress import track
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.data.coco import ImageRecord, read_image
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn, RpnWithMaps
from edgerpn.train.recall.average_precision import average_precision
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.results import FoundBoxes
from edgerpn.train.run.device import choose_compute, place
from edgerpn.train.run.failures import advice_before_first_step, advice_during_step, explain_out_of_memory
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.ranks import ranks_from_environment
from edgerpn.train.run.saving import CheckpointSaver
from edgerpn.train.run.setup import RunRequest, set_up
from edgerpn.train.run.state import TrainingRun, measured_proposals
from edgerpn.train.run.step import LossFunction, compile_network, loss_sums, take_step
from edgerpn.train.run.step_log import StepLog

_SHOWN: tuple[str, ...] = ("AR@10", "AR@100", "AR@1000", "AP", "AP50")
"""Figures of an evaluation in the log."""
_HIGH_DATA_WAIT = 0.2
"""Share of time spent waiting for images, from which on the end of a run advises what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The results of a run."""

    best: Path
    """Checkpoint with the best AR@100, or AP with classes."""
    last: Path
    """Checkpoint to resume from."""
    history: list[dict[str, float]]
    """Rows of log.csv."""
    metrics: dict[str, float]
    """Recall of `best`; empty if the run was interrupted before its first evaluation."""
    interrupted: bool
    """Whether SIGINT or SIGTERM ended the run before its last evaluation."""


def run_training(
    settings: TrainSettings,
    *,
    data: Path,
    output: Path,
    resume: bool = False,
    backbone_weights: Path | None = None,
    log: Callable[[str], None] | None = None,
    loss_function: LossFunction = loss_sums,
) -> TrainResult:
    """Runs a training with resolved settings; arguments and errors as in `edgerpn.train.train`.

    `loss_function` computes the losses of every step, by default from the labels.
    """
    ranks = ranks_from_environment()
    compute = choose_compute(settings.loop, ranks)
    request = RunRequest(
        settings=settings,
        data=data,
        folder=RunFolder(output),
        resume=resume,
        backbone_weights=backbone_weights,
        log=log if log is not None and ranks.is_first else _ignore,
    )
    with ranks.joined(compute.device), ExitStack() as stack:
        stack.callback(request.folder.release)
        with explain_out_of_memory(lambda: advice_before_first_step(request.folder, settings)):
            run = set_up(request, ranks, compute)
        with explain_out_of_memory(lambda: advice_during_step(run)):
            if run.settings.loop.compile:
                run.network = compile_network(RpnWithMaps(run.model), run, request.log)
            return _train(run, request.log, loss_function)


def _train(run: TrainingRun, log: Callable[[str], None], loss_function: LossFunction) -> TrainResult:
    state, ranks, evaluations = run.progress, run.ranks, run.settings.loop.evaluations
    resumed = time.monotonic()
    started = resumed - state.seconds
    saver = CheckpointSaver(run, log)
    is_stopped = False
    # torchrun forwards signals that its processes may have received already.
    forcing = (signal.SIGINT, signal.SIGTERM) if ranks.run_id is None else ()
    with run.loader, StopOnSignal(forcing=forcing) as signals, _final_plot(saver), StepLog(run) as step_log:
        while run.fraction < 1 and not is_stopped:
            steps = run.loader.steps(state.epoch, start_batch=state.batch)
            while (batches := _next(steps, run, step_log, saver)) is not None:
                record = take_step(run, batches, loss_function)
                state.step += 1
                state.batch += 1
                state.seconds, is_stopped = ranks.agree(time.monotonic() - started, signals.received is not None)
                step_log.add(record)
                if run.fraction >= (state.evaluations + 1) / evaluations:
                    step_log.flush()
                    _evaluate(run, saver, log)
                    state.seconds, is_stopped = ranks.agree(time.monotonic() - started, signals.received is not None)
                    # Those that became due meanwhile are left out: a step between them would teach little.
                    state.evaluations = run.num_due_evaluations
                    step_log.restart_timer()
                elif saver.is_due():
                    step_log.flush()
                    saver.save()
                if is_stopped or run.fraction >= 1:
                    break
            if state.batch >= run.loader.batches_per_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
        step_log.flush()
        # A signal during the last evaluation came too late to end the run before its time.
        is_stopped = is_stopped and run.fraction < 1
        if is_stopped:
            if not run.folder.best.exists():
                saver.save_best()
            if saver.save():
                log(f"interrupted at step {state.step}; continue with --resume")
        # A resumed run may have been shortened, or its best.pt be gone.
        elif ranks.agree(state.seconds, state.evaluated_step != state.step)[1]:
            _evaluate(run, saver, log)
        _report_data_wait(step_log, time.monotonic() - resumed, log)
    saver.finish()
    return TrainResult(
        best=run.folder.best,
        last=run.folder.last,
        history=list(run.folder.rows),
        metrics=state.best_metrics,
        interrupted=is_stopped,
    )


def _ignore(_: str) -> None:
    pass


def _next(
    steps: Iterator[tuple[TrainBatch, ...]], run: TrainingRun, step_log: StepLog, saver: CheckpointSaver
) -> tuple[TrainBatch, ...] | None:
    """Returns the images of the next step, or None at the end of the epoch.

    Raises:
        DataError: The images cannot be read; the run so far is saved.
    """
    try:
        return step_log.next_step(steps)
    except DataError as error:
        step_log.flush()
        if saver.save() and run.ranks.is_first:
            raise DataError(f"{error}\nStep {run.progress.step} is saved; continue with --resume") from error
        raise


def _evaluate(run: TrainingRun, saver: CheckpointSaver, log: Callable[[str], None]) -> None:
    """Evaluates the averaged weights, each process on its share of the images; logs and saves."""
    state, settings, ranks = run.progress, run.settings, run.ranks
    # Each process computes its steps itself; different processors round them differently.
    drift = ranks.broadcast_from_first(run.parameters)
    if drift:
        log(f"the weights of the processes differed by up to {drift:.1g}; all now have those of the first process")
    model = Rpn(settings.model)
    model.load_state_dict(run.weights)
    # All processes evaluate the weights that the first one saves, even if averages or statistics differ.
    ranks.broadcast_from_first(model.state_dict().values())
    # Faster, and the same as in an exported graph.
    fuse_batch_norm(model.eval())
    detector = Detector(
        model,
        measured_proposals(settings),
        network_hw=settings.data.input_hw,
    )
    found = _detect_all(place(detector, run.compute.device), run.val_set.records[ranks.rank :: ranks.size])
    shares = ranks.gather_to_first(found)
    metrics = ranks.compute_on_first(lambda: _measure(run, dict(ChainMap(*shares))))
    state.evaluated_step = state.step
    is_best = _is_better(metrics, state.best_metrics)
    shown = {name: metrics[name] for name in _SHOWN if name in metrics}
    run.folder.append({"step": state.step, "epoch": state.epoch, "seconds": state.seconds, **shown})
    if run.tensorboard is not None:
        run.tensorboard.add("val", shown, state.step)
    figures = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
    log(f"step {state.step}, {state.seconds / 60:.1f} min: {figures}{' (best)' if is_best else ''}")
    is_kept = not is_best or saver.save_best(metrics)
    if is_best and is_kept:
        # Only once best.pt holds it, whether or not last.pt can be written.
        state.best_metrics = metrics
    if is_kept:
        # After best.pt and never without it: a run resumed from the old last.pt repeats this evaluation.
        saver.save(metrics)
    saver.draw()


def _measure(run: TrainingRun, found: dict[ImageId, FoundBoxes]) -> dict[str, float]:
    metrics = average_recall(run.val_set.coco_ground_truth(), found)
    return metrics | average_precision(run.val_set, found).metrics if run.settings.model.classes else metrics


def _is_better(metrics: dict[str, float], best: dict[str, float]) -> bool:
    """Compares AP where it is defined, and otherwise AR@100."""
    name = "AP" if metrics.get("AP", -1.0) >= 0 else "AR@100"
    return metrics[name] > best.get(name, -1.0)


def _detect_all(detector: Detector, records: Sequence[ImageRecord]) -> dict[ImageId, FoundBoxes]:
    """Returns the proposals of all images, computed in full precision."""
    found = {}
    for record in track(records, "evaluating", unit="image"):
        proposals = detect(detector, read_image(record.file, record.exif))
        found[record.image_id] = FoundBoxes.of(proposals.boxes, proposals.scores, proposals.labels)
    return found


def _report_data_wait(step_log: StepLog, seconds: float, log: Callable[[str], None]) -> None:
    share = step_log.waited_s / max(seconds, 1e-9)
    if share >= _HIGH_DATA_WAIT:
        log(
            f"training spent {share:.0%} of its time waiting for images (data_wait in log.csv): raise data.workers, or "
            "cache decoded images with data.cache and data.cache_mib"
        )


@contextmanager
def _final_plot(saver: CheckpointSaver) -> Iterator[None]:
    """Writes log and plot at the end, also after a failure: the last rows help to explain it."""
    try:
        yield
    finally:
        saver.draw()
