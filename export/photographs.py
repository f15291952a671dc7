"""Photographs that an export measures on: those of a data set, or of a folder; and a few of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from edgerpn import manifest
from edgerpn.errors import DataError, ExportError
from edgerpn.images.decoding import split_decodable
from edgerpn.images.formats import list_images
from edgerpn.images.header import Exif
from edgerpn.letterbox import letterbox
from edgerpn.models import is_checkpoint
from edgerpn.train.data.choice import DataChoice, ExifChoice

if TYPE_CHECKING:
    from edgerpn.train.data.splits import Split

NUM_PARITY_IMAGES = 16
"""Images on which graph and network are compared, at most."""

FEW_CALIBRATION_IMAGES = 100
"""Fewer images than this cause a warning."""

MAX_CALIBRATION_IMAGES = 300
"""Images used at most; more change ranges little."""

Item = TypeVar("Item")


def exif_rule(model: Path) -> ExifChoice:
    """Returns the rule by which the training of a model read image files.

    Args:
        model: A checkpoint, an ONNX file or an engine.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ManifestError: The exported model's manifest is missing or does not fit.
    """
    if is_checkpoint(model):
        from edgerpn.train.checkpoint import load_checkpoint

        return load_checkpoint(model).settings.data.exif
    return manifest.find(model).input.exif


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Returns at most `most` items, at even distances from the first to the last, in their order."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def fit_photograph(frame: npt.NDArray[np.uint8], frame_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Returns a photograph (H, W, 3) BGR laid into a graph's input, of height, width and channels `frame_shape`."""
    import cv2

    height, width, num_channels = frame_shape
    fitted = letterbox((frame.shape[0], frame.shape[1]), (height, width)).apply(frame, cv2.resize)
    if num_channels == 3:
        return fitted
    # The fourth channel differs from pixel to pixel, so that a graph that reads it does not pass.
    return np.dstack([fitted, fitted[..., 2]])


def read_photograph(image: Path, frame_shape: tuple[int, int, int], exif: Exif) -> npt.NDArray[np.uint8]:
    """Reads a photograph as the model will, and lays it into a graph's input of height, width and channels.

    Args:
        image: The file.
        frame_shape: As for `fit_photograph`.
        exif: Reading of the model's training.

    Raises:
        DataError: The file cannot be read.
    """
    from edgerpn.train.data.image_files import read_image

    return fit_photograph(read_image(image, exif), frame_shape)


def list_photographs(folder: Path, log: Callable[[str], None], *, recursive: bool = False) -> list[Path]:
    """Returns the images of a folder that OpenCV decodes, sorted; logs a line for each format that it does not."""
    import cv2

    found, left_out = split_decodable(cv2, list_images(folder, recursive=recursive))
    for line in left_out:
        log(f"warning: {folder}: {line}")
    return found


def parity_images(
    data: Split | None,
    images: Path | None,
    *,
    most: int = NUM_PARITY_IMAGES,
    log: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Finds photographs to compare models on.

    Args:
        data: Validation images of a data set, see `edgerpn.train.data.splits`.
        images: Without a data set: a folder of photographs.
        most: Take so many at most, spread over all.
        log: Called with a line of text for images that cannot be used.

    Raises:
        ExportError: There are none.
        DataError: The data set cannot be used.
    """
    if data is not None:
        from edgerpn.train.data.coco import read_split

        found = [record.file for record in read_split(data, verify="header").records]
    elif images is not None:
        found = list_photographs(images, log) if images.is_dir() else []
    else:
        raise ExportError(
            "the graph must be compared with PyTorch on real images, and the training folder is not here; name a data "
            "set with --data PATH or a folder of photographs with --images DIR"
        )
    if not found:
        what = "this folder does not exist" if images is not None and not images.is_dir() else "no photographs in it"
        raise ExportError(f"{images}: {what}; expected a folder of photographs to compare on")
    return spread(found, most)


def calibration_images(
    folder: Path,
    *,
    limit: int = MAX_CALIBRATION_IMAGES,
    log: Callable[[str], None] = lambda _: None,
    choice: DataChoice | None = None,
) -> list[Path]:
    """Finds photographs to calibrate int8 on, spread evenly over those that there are.

    Args:
        folder: Folder of a data set, whose training images are taken; or any folder, in which photographs are looked
            for at every depth.
        limit: Take so many at most.
        log: Called with one line of text when there are few, and with the layout of a data set.
        choice: Format and split of a data set; None: by its files.

    Raises:
        DataError: There is no such folder, or no photograph in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: this calibration folder does not exist; name a folder of photographs")
    # Imported late: OpenCV would delay the help of every command.
    from edgerpn.train.data.splits import find_layouts, find_split

    choice = choice or DataChoice()
    if any("train" in layout.splits for layout in find_layouts(folder, choice.format)):
        from edgerpn.train.data.coco import read_split

        split = find_split(folder, "train", choice, log)
        found = sorted(record.file for record in read_split(split, verify="header").records)
    else:
        found = list_photographs(folder, log, recursive=True)
    if not found:
        raise DataError(
            f"{folder}: no photographs to calibrate on at any depth. Put {FEW_CALIBRATION_IMAGES} or more there, from "
            "the camera or the training data"
        )
    if len(found) < FEW_CALIBRATION_IMAGES:
        log(
            f"warning: {folder}: only {len(found)} photographs to calibrate on; ranges from fewer than "
            f"{FEW_CALIBRATION_IMAGES} may miss what the camera will see"
        )
    return spread(found, limit)
