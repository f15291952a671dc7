"""Recall and speed of a checkpoint on annotated images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from edgerpn.errors import ConfigError
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.data.coco import class_names
from edgerpn.train.data.formats.classes import selected_sha256
from edgerpn.train.data.splits import Split, find_split
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn
from edgerpn.train.recall.measurement import Evaluation, measure
from edgerpn.train.run.device import place
from edgerpn.train.run.start import AUTO, RANDOM


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | Split,
    *,
    images: str | os.PathLike[str] | None = None,
    num_proposals: int = 1000,
    size_hw: tuple[int, int] | None = None,
    holdout_classes: Sequence[str] | None = None,
    limit: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures the recall and the speed of a checkpoint; uses a GPU if PyTorch sees one.

    Args:
        checkpoint: A file that `train` wrote, such as RUN/best.pt, or weights to share, see `load_checkpoint`.
        data: Folder of a data set, or an annotation file, see `find_split`; or a split that it returned.
        images: Folder of the images; None: images/ beside the annotations.
        num_proposals: Proposals of each image, at most.
        size_hw: Height and width at which the network works, pixels; None: as in training.
        holdout_classes: Classes whose recall is also measured separately; None: those that training held out.
        limit: Measure only the first `limit` images.
        log: Called with a line for the layout of the data and one for each kind of problem in it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: The network cannot work at `size_hw`.
        DataError: The annotations or images cannot be used.
        MissingDependencyError: The package that measures recall is not installed.
    """
    file = Path(checkpoint)
    split = data if isinstance(data, Split) else find_split(Path(data), "val", log=log)
    if images is not None:
        split = split._replace(images=Path(images))
    model, content = load_model(file)
    split = split.read_like(content.settings.data.exif)
    if holdout_classes is None:
        holdout_classes = _known_holdout_classes(content, split, log)
    if log is not None:
        _tell_of_seen(file, content, holdout_classes, log)
        tell_of_other_split(content, split, log)
    return measure(
        partial(detect, make_detector(model, content, num_proposals=num_proposals, size_hw=size_hw)),
        split,
        name=file.name,
        num_proposals=num_proposals,
        class_names=content.settings.model.classes,
        holdout_classes=holdout_classes,
        limit=limit,
        log=log,
    )


def _tell_of_seen(
    file: Path, checkpoint: Checkpoint, holdout_classes: Sequence[str], log: Callable[[str], None]
) -> None:
    """Names the classes whose recall is not that of unseen ones."""
    start, held_out = checkpoint.settings.loop.start, checkpoint.settings.data.holdout_classes
    if holdout_classes and start not in (AUTO, RANDOM):
        log(f"{file.name} started from weights ({start}) that may have seen objects of {', '.join(holdout_classes)}")
        return
    seen = [name for name in holdout_classes if name not in held_out]
    if seen:
        log(f"{file.name} was trained without holding out {', '.join(seen)}, and may have seen such objects")


def tell_of_other_split(checkpoint: Checkpoint, split: Split, log: Callable[[str], None]) -> None:
    """Says so where images were held out of the folder of the training, but not those that the training held out."""
    folder = (split.folder or split.annotations.parent).resolve()
    if not split.rest_sha256 or str(folder) != checkpoint.data_folder:
        return
    data = checkpoint.settings.data
    rest = selected_sha256(split.rest_sha256, data.classes) if data.classes else split.rest_sha256
    if rest != checkpoint.data_sha256:
        log(
            f"{split.label}: training may have seen some of these images: it held out others (by --split "
            f"{data.split or 'as it is by default'}), or the annotations or photographs have changed since"
        )


def _known_holdout_classes(checkpoint: Checkpoint, split: Split, log: Callable[[str], None] | None) -> tuple[str, ...]:
    """Returns the classes that training held out, if the annotations have all of them, otherwise no classes."""
    names = checkpoint.settings.data.holdout_classes
    known = class_names(split) if names else frozenset()
    missing = [name for name in names if name not in known]
    if not missing:
        return names
    if log is not None:
        log(
            f"{split.label}: the checkpoint was trained without {', '.join(names)}, but there is no class named "
            f"{', '.join(missing)} here: recall covers all objects"
        )
    return ()


def make_detector(
    model: Rpn, checkpoint: Checkpoint, *, num_proposals: int, size_hw: tuple[int, int] | None
) -> Detector:
    """Returns the detector of a checkpoint with exact NMS, on a GPU if PyTorch sees one; arguments as in `evaluate`.

    Raises:
        ConfigError: The network cannot work at `size_hw`.
    """
    hw = size_hw or checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ConfigError([f"size {hw[0]}x{hw[1]}: {misfit}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    proposals = dataclasses.replace(checkpoint.settings.proposals, num_proposals=num_proposals, nms_candidates=None)
    fuse_batch_norm(model)
    return place(Detector(model, proposals, network_hw=hw), device)
