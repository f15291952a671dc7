"""The training loop: one function that reads top to bottom.

for each epoch: for each batch: one step; log
at evenly spread points: evaluate the averaged weights, save last.pt (and best.pt when AR@100 rose)
in between, when it is due: save last.pt
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgerpn.errors import DataError
from edgerpn.machine import StopOnSignal
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.batch import Batch
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn
from edgerpn.train.recall.validation import find, recall_of
from edgerpn.train.run.compilation import compiled
from edgerpn.train.run.device import choose_compute, place
from edgerpn.train.run.failures import out_of_memory_named, way_on_from_start, way_on_from_step
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.journal import Journal
from edgerpn.train.run.ranks import ranks_from
from edgerpn.train.run.saving import Keeper
from edgerpn.train.run.setup import RunRequest, set_up
from edgerpn.train.run.state import Run
from edgerpn.train.run.step import take_step

_STARVED = 0.2
"""Share of the time spent waiting for images from which on the end of a run says what to do about it."""


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
    """Trains a network on a COCO folder; with the processes that torchrun started beside this one, if it did.

    Args:
        settings: Resolved settings.
        data: Folder with train.json, val.json and images/, or a training annotation file with val.json beside it.
        out: Folder of the run; made when missing.
        resume: Go on from `out`/last.pt; with the same settings the numbers are those of an uninterrupted run.
        backbone_weights: torchvision state dict to start the backbone from.
        say: Called with one line of text for people, now and then; of several processes only in the first.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the machine, or `out` holds a run already.
        CheckpointError: There is no whole checkpoint to resume from.
        TrainingDivergedError: The loss is not finite.
        TrainingStoppedError: Memory, disk or another process ended the run; the message says how to go on.
    """
    ranks = ranks_from()
    compute = choose_compute(settings.loop, ranks)
    if not ranks.is_first:
        say = _say_nothing
    request = RunRequest(
        settings=settings,
        data=data,
        folder=RunFolder(out),
        resume=resume,
        backbone_weights=backbone_weights,
        say=say,
    )
    with ranks.joined(compute.device):
        with out_of_memory_named(lambda: way_on_from_start(request.folder, settings)):
            run = set_up(request, ranks, compute)
        with out_of_memory_named(lambda: way_on_from_step(run)):
            if run.settings.loop.compile:
                run.network = compiled(run.model, run, say)
            return _train(run, say)


def _train(run: Run, say: Callable[[str], None]) -> TrainResult:
    state, ranks, evaluations = run.progress, run.ranks, run.settings.loop.evaluations
    started = time.monotonic() - state.seconds
    keeper = Keeper(run, say)
    is_stopped = False
    # torchrun passes on signals that its processes may have received already.
    forcing = (signal.SIGINT, signal.SIGTERM) if ranks.run_id is None else ()
    with run.loader, StopOnSignal(forcing=forcing) as signals, _drawn(keeper), Journal(run) as journal:
        while run.fraction < 1 and not is_stopped:
            steps = run.loader.steps(state.epoch, start_batch=state.batch)
            while (batches := _next(steps, run, journal, keeper)) is not None:
                record = take_step(run, batches)
                state.step += 1
                state.batch += 1
                state.seconds, is_stopped = ranks.agree(time.monotonic() - started, signals.received is not None)
                journal.add(record)
                if run.fraction >= (state.evaluations + 1) / evaluations:
                    journal.settle()
                    _evaluate(run, keeper, say)
                    state.seconds, is_stopped = ranks.agree(time.monotonic() - started, signals.received is not None)
                    journal.skip_time()
                elif keeper.is_due():
                    journal.settle()
                    keeper.save()
                if is_stopped or run.fraction >= 1:
                    break
            if state.batch >= run.loader.batches_per_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
        journal.settle()
        if is_stopped:
            if not run.folder.best.exists():
                keeper.save_best()
            if keeper.save():
                say(f"interrupted at step {state.step}; go on with --resume")
        _tell_waiting(journal, time.monotonic() - started, say)
    keeper.finish()
    return TrainResult(
        best=run.folder.best,
        last=run.folder.last,
        history=run.folder.rows,
        metrics=state.best_metrics,
        interrupted=is_stopped,
    )


def _say_nothing(_: str) -> None:
    pass


def _next(steps: Iterator[tuple[Batch, ...]], run: Run, journal: Journal, keeper: Keeper) -> tuple[Batch, ...] | None:
    """The images of the next step; None at the end of the epoch.

    Raises:
        DataError: They cannot be read. What was trained until now is saved.
    """
    try:
        return journal.next_of(steps)
    except DataError as error:
        journal.settle()
        if keeper.save() and run.ranks.is_first:
            raise DataError(f"{error}\nStep {run.progress.step} is saved; go on with --resume") from error
        raise


def _evaluate(run: Run, keeper: Keeper, say: Callable[[str], None]) -> None:
    """Evaluates the averaged weights, each process its share of the images; logs and saves."""
    state, settings, ranks = run.progress, run.settings, run.ranks
    # Each process takes its steps for itself; unlike processors round them differently.
    drift = ranks.take_from_first(run.parameters)
    if drift:
        say(f"the processes' weights differed by up to {drift:.1g}; all have the first one's now")
    model = Rpn(settings.model)
    model.load_state_dict(run.weights)
    # What is evaluated is what the first process saves, also where averages or statistics are each process's own.
    ranks.take_from_first(model.state_dict().values())
    # It is faster, and what an exported graph does.
    fuse_batch_norm(model.eval())
    detector = Detector(
        model,
        # AR@1000 needs as many proposals, of all candidates.
        dataclasses.replace(settings.proposals, num_proposals=1000, nms_candidates=None, score_threshold=0.0),
        network_hw=settings.data.input_hw,
    )
    shares = ranks.to_first(find(place(detector, run.compute.device), run.val_set.records[ranks.rank :: ranks.size]))
    metrics = ranks.from_first(lambda: recall_of([found for share in shares for found in share], run.val_set))
    state.evaluations += 1
    is_best = metrics["AR@100"] > state.best_ar100
    shown = {name: metrics[name] for name in ("AR@10", "AR@100", "AR@1000")}
    run.folder.append({"step": state.step, "epoch": state.epoch, "seconds": state.seconds, **shown})
    if run.tensorboard is not None:
        for name, value in shown.items():
            run.tensorboard.add_scalar(f"val/{name}", value, state.step)
    figures = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
    say(f"step {state.step}, {state.seconds / 60:.1f} min: {figures}{' (best)' if is_best else ''}")
    is_kept = not is_best or keeper.save_best(metrics)
    if is_best and is_kept:
        # As soon as best.pt holds it and no earlier, whatever becomes of last.pt.
        state.best_ar100, state.best_metrics = metrics["AR@100"], metrics
    if is_kept:
        # After best.pt and not without it: going on from the old last.pt comes to this evaluation again.
        keeper.save(metrics)
    keeper.draw()


def _tell_waiting(journal: Journal, seconds: float, say: Callable[[str], None]) -> None:
    share = journal.waited_s / max(seconds, 1e-9)
    if share >= _STARVED:
        say(
            f"{share:.0%} of the time went into waiting for images (data_wait in log.csv): raise data.workers, or keep "
            "decoded images with data.cache and data.cache_mib"
        )


@contextmanager
def _drawn(keeper: Keeper) -> Iterator[None]:
    """Writes log and plot at the end, also when the run fails: the rows before a failure tell why."""
    try:
        yield
    finally:
        keeper.draw()
