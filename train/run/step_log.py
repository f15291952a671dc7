"""The log of a run's steps: rows of log.csv, the progress bar, TensorBoard, and the time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from edgerpn.progress import progress
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import StepFigures, StepRecord, check_finite

Item = TypeVar("Item")


class StepLog:
    """Logs the steps of a run; use it with `with`.

    It reads the numbers of a step one step later, so that a GPU does not idle meanwhile.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._pending: StepRecord | None = None
        self._pending_seconds = 0.0
        self._logged_step = run.progress.step
        self._begun_at = time.monotonic()
        self._waited_s = 0.0
        self.waited_s = 0.0
        """Seconds that all steps have waited for their images."""
        loop = run.settings.loop
        total, unit = (60 * loop.minutes, "s") if loop.minutes else (loop.epochs * run.loader.batches_per_epoch, "step")
        self._bar_context = progress(total, "training", unit=unit) if run.ranks.is_first else None

    def __enter__(self) -> StepLog:
        self._bar = self._bar_context.__enter__() if self._bar_context else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar_context:
            self._bar_context.__exit__(kind, error, traceback)

    def next_step(self, steps: Iterator[Item]) -> Item | None:
        """Returns the next item, or None at the end; the time until it arrives counts as waiting for data."""
        began = time.monotonic()
        try:
            return next(steps, None)
        finally:
            self._waited_s += time.monotonic() - began

    def add(self, record: StepRecord) -> None:
        """Adds a step that has started; logs the step before, or this one if its numbers are available.

        Raises:
            TrainingDivergedError: The numbers of the logged step are not finite.
        """
        previous, self._pending = self._pending, record
        self._note_finished(previous)
        self._pending_seconds = self._run.progress.seconds
        if record.arrival is None:
            self.flush()
        self._move_bar()

    def flush(self) -> None:
        """Waits for the last step and logs its numbers; afterwards the state of the run is known to be finite.

        Raises:
            TrainingDivergedError: The numbers are not finite.
        """
        previous, self._pending = self._pending, None
        self._note_finished(previous)

    def restart_timer(self) -> None:
        """Excludes the time since the last row, such as an evaluation, from the speed in the next row."""
        self._logged_step = self._run.progress.step
        self._begin_row()

    def _note_finished(self, record: StepRecord | None) -> None:
        if record is None:
            return
        figures = check_finite(self._run, record)
        taken = record.step + 1
        if taken % self._run.settings.loop.log_every == 0 or taken == 1:
            self._log(record, figures)
        if self._bar is not None and taken % 10 == 0:
            self._bar.set_postfix_str(f"epoch {record.epoch}, loss {figures.loss:.3f}", refresh=False)

    def _log(self, record: StepRecord, figures: StepFigures) -> None:
        run, taken = self._run, record.step + 1
        elapsed = max(time.monotonic() - self._begun_at, 1e-9)
        row = {
            "loss": figures.loss,
            "objectness": figures.objectness,
            "box": figures.box,
            **self._of_regions(figures),
            "objects": figures.objects,
            "grad_norm": figures.grad_norm,
            "learning_rate": record.learning_rate,
            "images_per_s": (taken - self._logged_step) * run.loader.batch_size / elapsed,
            "data_wait": self._waited_s / elapsed,
        }
        self._logged_step = taken
        self._begin_row()
        run.folder.append({"step": taken, "epoch": record.epoch, "seconds": self._pending_seconds, **row})
        if run.tensorboard is not None:
            run.tensorboard.add("train", row, taken)

    def _of_regions(self, figures: StepFigures) -> dict[str, float]:
        if not self._run.settings.model.classes:
            return {}
        return {"region_class": figures.region_class, "region_box": figures.region_box}

    def _begin_row(self) -> None:
        self.waited_s += self._waited_s
        self._waited_s = 0.0
        self._begun_at = time.monotonic()

    def _move_bar(self) -> None:
        if self._bar is None:
            return
        state = self._run.progress
        done = state.seconds if self._run.settings.loop.minutes else float(state.step)
        self._bar.update(round(done - getattr(self._bar, "n", done), 1))
