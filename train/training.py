"""Training as one call: settings from a preset, a file and keywords, then the loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerpn import settings as settings_io
from edgerpn.errors import UsageError
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.network.model import ALL_CLASSES
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.loop import TrainResult, run_training

__all__ = ["TrainResult", "read_saved_settings", "resolve_settings", "train"]


def train(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    size_hw: tuple[int, int] | None = None,
    preset: str | None = None,
    holdout_classes: Sequence[str] | None = None,
    classify: bool = False,
    start: str | os.PathLike[str] | None = None,
    settings: TrainSettings | Mapping[str, Any] | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    resume: bool = False,
    log: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains a network on a data set in COCO, YOLO, PASCAL VOC or another known format.

    Blocks until the training ends. SIGINT or SIGTERM end it after the current step, with everything saved. When
    torchrun started this process, it trains together with the other processes.

        from edgerpn.train import train

        result = train("photos", "run", minutes=30, size_hw=(384, 640))
        print(result.best, result.metrics["AR@100"])

    Args:
        data: Folder of a data set, or its annotation file, see `edgerpn.train.data.splits.find_train_and_val`. The
            settings data.format, data.split and data.classes say how to read and split it, if not by its files.
        output: Folder of the run: checkpoints, log and loss plot. It is created if missing.
        minutes: Wall-clock time of the run; 0: count epochs.
        epochs: Passes over the training images, instead of `minutes`; both are an error.
        size_hw: Height and width at which the network works, pixels.
        preset: "edge" (default) or "paper"; a resumed run keeps its own settings instead.
        holdout_classes: Names of classes whose boxes training does not see.
        classify: Whether to train a second stage too, which tells the classes of the objects apart.
        start: Weights that a new run starts from: "general" (those of this package, the default where they fit the
            network), "random", or a checkpoint.
        settings: All settings (`load_settings` makes them), or single ones by name over the preset's, such as
            {"optimizer.learning_rate": 1e-3}. Single ones take precedence over the arguments above.
        backbone_weights: State dict of torchvision to start the backbone from (.pth or .safetensors).
        resume: Continue from `output`/last.pt; with the same settings the numbers equal those of an uninterrupted run.
        log: Called with one line of text for people now and then, in the first process only.

    Raises:
        DataError: The data cannot be used.
        ConfigError: A setting is wrong or does not fit the machine, or `output` already holds a run.
        CheckpointError: There is no intact checkpoint to resume from, or it does not fit the settings.
        TrainingDivergedError: The loss is not finite.
        TrainingStoppedError: Memory, disk or another process ended the run; the message says how to resume.
    """
    overrides: list[str] = []
    if isinstance(settings, TrainSettings):
        base: TrainSettings | None = settings
    else:
        base = read_saved_settings(output) if resume else None
        overrides = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    resolved = resolve_settings(
        base=base,
        preset=preset,
        minutes=minutes,
        epochs=epochs,
        size_hw=size_hw,
        holdout_classes=holdout_classes,
        classify=classify,
        start=start,
        overrides=overrides,
    )
    return run_training(
        resolved,
        data=Path(data),
        output=Path(output),
        resume=resume,
        backbone_weights=None if backbone_weights is None else Path(backbone_weights),
        log=log,
    )


def read_saved_settings(output: str | os.PathLike[str]) -> TrainSettings | None:
    """Returns the settings of the run in a folder, or None if there is no run to resume."""
    folder = RunFolder(Path(output))
    return folder.read_last().settings if folder.last.is_file() else None


def resolve_settings(
    *,
    base: TrainSettings | None = None,
    preset: str | None = None,
    file: str | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    size_hw: tuple[int, int] | None = None,
    holdout_classes: Sequence[str] | None = None,
    classify: bool = False,
    start: str | os.PathLike[str] | None = None,
    data_format: str | None = None,
    data_split: str | None = None,
    data_allow: Sequence[str] = (),
    data_classes: Sequence[str] | None = None,
    data_exif: str | None = None,
    follow_links: bool = False,
    overrides: Sequence[str] = (),
) -> TrainSettings:
    """Resolves settings from preset (or `base`) < TOML file < the named arguments < `overrides` ("a.b=value").

    Raises:
        ConfigError: A setting is unknown or out of range, there is a preset beside `base`, or there are two lengths.
    """
    if minutes and epochs is not None:
        raise UsageError([f"minutes={minutes}, epochs={epochs}: a run has one length; name one of the two"])
    texts = []
    if epochs is not None:
        texts += [f"loop.epochs={epochs}", "loop.minutes=0"]
    if minutes is not None:
        texts.append(f"loop.minutes={minutes}")
    if size_hw is not None:
        texts.append(f"data.input_hw={list(size_hw)}")
    if holdout_classes is not None:
        texts.append(f"data.holdout_classes={json.dumps(list(holdout_classes))}")
    if classify:
        texts.append(f"model.classes={json.dumps(ALL_CLASSES)}")
    if start is not None:
        texts.append(f"loop.start={json.dumps(os.fspath(start))}")
    if data_format is not None:
        texts.append(f"data.format={data_format}")
    if data_split is not None:
        texts.append(f"data.split={json.dumps(data_split)}")
    if data_allow:
        texts.append(f"data.allow={json.dumps(list(dict.fromkeys(data_allow)))}")
    if data_classes is not None:
        texts.append(f"data.classes={json.dumps(list(data_classes))}")
    if data_exif is not None:
        texts.append(f"data.exif={data_exif}")
    if follow_links:
        texts.append("data.follow_links=true")
    texts += overrides
    if base is None:
        return load_settings(preset=preset or "edge", file=file, overrides=tuple(texts))
    if preset is not None:
        raise UsageError(["--preset: a resumed run keeps its own settings; change single ones with --set"])
    return settings_io.load(TrainSettings, base=base, files=[file] if file else [], overrides=texts)
