"""The folder of a training run: checkpoints, resolved settings, log and loss plot."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from edgerpn import files, settings
from edgerpn.errors import CheckpointError, ConfigError, require
from edgerpn.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, versions
from edgerpn.train.config import TrainSettings

COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "images_per_s",
    "data_wait",
    "learning_rate",
    "loss",
    "objectness",
    "box",
    "objects",
    "grad_norm",
    "AR@10",
    "AR@100",
    "AR@1000",
)
"""Columns of log.csv; only rows of evaluations fill the last ones."""
CLASS_COLUMNS = ("region_class", "region_box", "AP", "AP50")
"""Further columns of a run with classes."""
# As `edgerpn.files.replacing` names them, once or twice.
_TEMPORARY = re.compile(
    r"\.+(best|last|last-previous|log|config|versions|loss)(\.[0-9a-f]{8})+\.(pt|csv|toml|json|png)"
)


class LogRows(Sequence[dict[str, float]]):
    """Rows of a log: numbers by the names of columns, without the empty cells.

    A cell takes 8 bytes, because a run of a week has hundreds of thousands of rows.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        """Copies `rows`."""
        self._columns: dict[str, array[float]] = {}
        self._num_rows = 0
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row; NaN is an empty cell."""
        for name, value in row.items():
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (self._num_rows - len(column)))
            column.append(value)
        self._num_rows += 1

    def __len__(self) -> int:
        return self._num_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, float]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, float] | list[dict[str, float]]:
        numbers = range(self._num_rows)[index]
        return self._row(numbers) if isinstance(numbers, int) else [self._row(number) for number in numbers]

    def _row(self, number: int) -> dict[str, float]:
        cells = ((name, column[number]) for name, column in self._columns.items() if number < len(column))
        return {name: value for name, value in cells if not math.isnan(value)}

    def has_column(self, name: str) -> bool:
        """Returns whether a row has this column."""
        return name in self._columns

    def points(self, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns the steps of the rows that have a column, and its values."""
        values = np.array(self._columns.get(name, ()), np.float64)
        steps = np.array(self._columns.get("step", ()), np.float64)[: len(values)]
        return steps[~np.isnan(values)], values[~np.isnan(values)]


class RunFolder:
    """Paths and files of one run; every write replaces a file atomically.

    From `start` or `keep_others_out` until `release` no other process can start or resume a run in the folder.
    """

    def __init__(self, path: Path) -> None:
        """Names the files inside `path`; creates nothing yet."""
        self.path = path
        self.best = path / "best.pt"
        self.last = path / "last.pt"
        self.previous = path / "last-previous.pt"
        self.log = path / "log.csv"
        self.config = path / "config.toml"
        self.plot = path / "loss.png"
        self._lock = contextlib.ExitStack()
        self._is_ours = False
        self.rows = LogRows()
        self.newest_intact: Path | None = None
        """The newest checkpoint that this process read or wrote, and so knows to be intact."""
        self._is_last_damaged = False
        self._num_plotted = 0

    def check_new(self) -> None:
        """Checks that a new run can start here.

        Raises:
            ConfigError: The folder already holds a run, or cannot be written.
        """
        self._check_writable()
        if self.last.exists() or self.best.exists():
            resumable = "continue it with --resume, or choose"
            what = resumable if self.last.exists() else f"it has no {self.last.name} to resume from; choose"
            raise ConfigError([f"{self.path} already holds a run; {what} another folder with --output"])

    def start(self, resolved: TrainSettings) -> None:
        """Starts a new run; errors as in `check_new`, and a ConfigError if another process writes into the folder."""
        self.check_new()
        self.path.mkdir(parents=True, exist_ok=True)
        self.keep_others_out()
        self.check_new()  # another run may have begun and ended since
        self._write_config(resolved)

    def read_last(self, log: Callable[[str], None] = lambda _: None) -> Checkpoint:
        """Reads the checkpoint to resume from: last.pt or, if it is damaged, the one before (which it logs).

        Raises:
            ConfigError: There is no last.pt.
            CheckpointError: Both are damaged.
        """
        if not self.last.exists():
            place = " in another folder" if self.best.exists() else ""
            raise ConfigError(
                [f"{self.path}: nothing to resume, {self.last.name} is missing; start without --resume{place}"]
            )
        try:
            checkpoint = load_checkpoint(self.last)
        except CheckpointError as error:
            if not self.previous.exists():
                raise CheckpointError(
                    f"{error}\nThere is no {self.previous.name} beside it to resume from: put an intact copy of "
                    f"{self.last.name} there, or start a new run in another folder."
                ) from error
            checkpoint = load_checkpoint(self.previous)
            self.newest_intact, self._is_last_damaged = self.previous, True
            log(f"{error}; resuming from {self.previous.name} of step {checkpoint.step} instead")
            return checkpoint
        self.newest_intact = self.last
        return checkpoint

    def resume(self, resolved: TrainSettings, checkpoint: Checkpoint) -> None:
        """Resumes the run at `checkpoint`: drops the rows logged after it.

        Raises:
            CheckpointError: Another program changed the log.
        """
        if self.log.exists():
            self.rows = LogRows(row for row in read_log(self.log) if row["step"] <= checkpoint.step)
        self._write_config(resolved)

    def keep_others_out(self) -> None:
        """Keeps other processes from running in the folder, which exists, until `release`.

        Raises:
            ConfigError: Another process runs in it, or this one cannot write there.
        """
        self._check_writable()
        if not self._is_ours:
            self._lock.enter_context(files.locked(self.path / "lock", folder=self.path))
            self._is_ours = True
            self._remove_remains()

    def _remove_remains(self) -> None:
        """Removes the files that a killed process was writing."""
        for path in self.path.glob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                # What cannot be removed is no reason against the run.
                with contextlib.suppress(OSError):
                    path.unlink()

    def release(self) -> None:
        """Lets other processes run in the folder; does nothing where this one never did."""
        self._lock.close()
        self._is_ours = False

    def _check_writable(self) -> None:
        # Unlike Path.exists, this is false, and no error, behind a folder that this user cannot enter.
        place = next(each for each in (self.path, *self.path.absolute().parents) if os.path.exists(each))
        if not place.is_dir():
            raise ConfigError([f"{place}: this is a file, expected a folder for the run"])
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError([f"{place}: this user cannot write here; change that, or choose another folder with -o"])

    def _write_config(self, resolved: TrainSettings) -> None:
        files.write_text(self.config, settings.to_toml(resolved))
        files.write_text(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row to the log in memory; `write_log` writes it."""
        self.rows.append(row)

    def write_log(self) -> None:
        text = io.StringIO()
        further = filter(self.rows.has_column, CLASS_COLUMNS)
        writer = csv.DictWriter(text, (*COLUMNS, *further), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in self.rows)
        files.write_text(self.log, text.getvalue())

    def plot_log(self) -> None:
        """Draws the loss plot, if the log has new rows."""
        if len(self.rows) != self._num_plotted:
            plot_losses(self.rows, self.plot)
            self._num_plotted = len(self.rows)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Writes best.pt, without the training state.

        Raises:
            OSError: It cannot be written; the old file is intact.
        """
        save_checkpoint(dataclasses.replace(checkpoint, training=None), self.best)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes last.pt and keeps the old one as last-previous.pt, unless that one is damaged.

        Raises:
            OSError: It cannot be written; both files are unchanged.
        """
        with files.replacing(self.last) as new:
            save_checkpoint(checkpoint, new)
            # Only now: until the new state is on the disk, the older of the two may be the only intact one.
            if self.last.exists() and not self._is_last_damaged:
                # A hard link instead of a copy; file systems without links keep no previous checkpoint.
                with contextlib.suppress(OSError), files.replacing(self.previous) as second_name:
                    os.link(self.last, second_name)
        self.newest_intact, self._is_last_damaged = self.last, False


def _short(value: float) -> str:
    """Returns a number with six digits, or a whole one with all of its digits: runs have over a million steps."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def read_log(path: Path) -> LogRows:
    """Reads the rows of a log.csv without their empty cells.

    Raises:
        CheckpointError: Another program changed it.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = LogRows({k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file))
    except (ValueError, TypeError, csv.Error) as error:  # a TypeError: a row with more cells than the first one
        raise _not_a_log(path, str(error)) from error
    if any("step" not in row for row in rows):
        raise _not_a_log(path, "a row has no step")
    return rows


def _not_a_log(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected the log as edgerpn train wrote it, numbers between commas, but another program changed it "
        f"({reason}); restore it, or remove it to continue without the rows so far"
    )


def plot_losses(rows: LogRows, path: Path) -> None:
    """Draws the losses and the recall over the steps into a PNG."""
    require("matplotlib", extra="train", purpose="the loss plot")
    # The object interface needs no display and keeps no global figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, color in (("loss", "#1f4e79"), ("objectness", "#c55a11"), ("box", "#548235")):
        axes.plot(*rows.points(name), color=color, label=name, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    steps, recall = rows.points("AR@100")
    if len(steps):
        right = axes.twinx()
        right.plot(steps, recall, "o--", color="#7030a0", label="AR@100 (val)", markersize=4)
        right.set_ylabel("AR@100 on the validation images")
        # Room above the curve for the legend.
        right.set_ylim(0, 1.25 * recall.max() if recall.max() > 0 else 1)
        right.legend(loc="upper left", frameon=False)
    axes.set_ylim(bottom=0, top=_upper_limit(rows.points("loss")[1].tolist()))
    axes.legend(loc="upper right", frameon=False)
    with files.replacing(path) as temporary:
        canvas.print_png(str(temporary))


def _upper_limit(values: list[float]) -> float | None:
    """Returns a limit that shows the curve instead of the spike of the first steps."""
    if len(values) < 10:
        return None
    ordered = sorted(values)
    return 1.3 * ordered[int(0.98 * (len(ordered) - 1))]


class TensorBoardLog:
    """TensorBoard's files of a run; they end at the first one that cannot be written."""

    def __init__(self, path: Path, log: Callable[[str], None], *, step: int) -> None:
        """Creates a file in the folder `path`, before which the figures of steps after `step` do not count.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        require("tensorboard", extra="tensorboard", purpose="loop.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(path), purge_step=step + 1)
        self._log = log

    def add(self, part: str, figures: Mapping[str, float], step: int) -> None:
        """Adds figures as `part`/name; logs a failure, after which it adds no more."""
        if self._writer is None:
            return
        try:
            for name, value in figures.items():
                self._writer.add_scalar(f"{part}/{name}", value, step)
        except OSError as error:
            # Of the writer's thread, which has ended with it.
            self._writer = None
            self._log(
                f"step {step}: TensorBoard's file could not be written: {error.strerror or error}; training continues "
                "without it, and --resume begins another one"
            )
