"""A validation split for sets without one: images of one source stay together, and the choice is repeatable."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from edgerpn.errors import DataError
from edgerpn.images.header import read_header
from edgerpn.machine import available_cores
from edgerpn.train.data.annotations import Problems
from edgerpn.train.data.formats.content import Content
from edgerpn.train.data.image_files import ImageFolder

_NUMBERED = re.compile(r"(.*?)[ _.\-(]*(?:frame|img|image)?[ _.\-(]*(\d+)\)?", re.IGNORECASE | re.DOTALL)
_WAS_SUFFIX = re.compile(r"[_.](?:jpe?g|png|bmp|webp|tiff?)$", re.IGNORECASE)
_MAX_TAIL = 100
"""Letters at the end of a name that are searched for a number: the search takes their third power of steps."""
_BURST_GAP_S = 60
"""Photographs follow each other within this time in a burst."""
_MAX_SAME_TIME = 40
_NUM_BLOCKS = 20
"""Blocks into which one long sequence is cut."""


class SourceSplit(NamedTuple):
    """A set in two parts."""

    train: Content
    """The images that stay for training."""
    val: Content
    """The images held out."""
    summary: str
    """Counts of images and sources, for the log."""


def split_by_source(
    content: Content, fraction: float, seed: int, where: Path, folder: Path | None = None
) -> SourceSplit:
    """Holds out about a `fraction` of the images of a set, by whole sources.

    Images whose names agree before Roboflow's ".rf." or before a number at the end are of one source, such as the
    frames of a video; "source" or "video_id" of an image replaces its name. Photographs with a time in their EXIF
    data are of one source while each follows the one before within a minute. A source with more numbered images, or
    photographs, than the validation split is cut into blocks of neighbours. The choice depends on the names, the times
    and the seed alone.

    Args:
        content: A set whose malformed entries have been repaired.
        fraction: Share of the images, above 0 and below 1.
        seed: Another seed chooses other sources.
        where: Annotation file or folder, for messages.
        folder: Folder of the images, whose times are read; None: names alone count.

    Raises:
        DataError: There is no image, or all images are of one source that cannot be cut.
    """
    images: list[dict[str, Any]] = content.root["images"]
    if not images:
        raise DataError(f"{where}: no usable image entries")
    wanted = max(1, round(fraction * len(images)))
    bursts = _bursts(images, folder) if folder is not None else {}
    units = _units(images, wanted, bursts)
    if len(units) < 2:
        raise DataError(
            f"{where}: no validation split, and all {len(images)} images are of one source, so none can be held out; "
            "add a validation split"
        )
    order = sorted(units, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest())
    chosen: set[int] = set()
    num_units = 0
    for key in order:
        if len(chosen) < wanted and len(chosen) + len(units[key]) <= max(1.25 * wanted, 1):
            chosen.update(units[key])
            num_units += 1
    if not chosen or len(chosen) == len(images):
        chosen, num_units = set(units[min(units, key=lambda key: len(units[key]))]), 1
    rule = f"{fraction:g}@{seed}"
    if bursts:
        # Photographs that come or go change the split of others, while the annotations stay.
        rule += f" of {sorted(chosen)}"
    return SourceSplit(
        train=_part(content, [i for i in range(len(images)) if i not in chosen], f"{rule} train", keeps_problems=True),
        val=_part(content, sorted(chosen), f"{rule} val", keeps_problems=False),
        summary=f"{len(chosen)} of {len(images)} images ({num_units} of {len(units)} groups by source, seed {seed})",
    )


def source_of(name: str) -> tuple[str, int | None]:
    """Returns the source of an image by its file name, and its number in it, if it has one."""
    stem = name.replace("\\", "/").removeprefix("images/")
    before, roboflow, _ = stem.partition(".rf.")
    if not roboflow:
        folder, _, base = stem.rpartition("/")
        stem = f"{folder}/{base.rpartition('.')[0] or base}"
    else:
        stem = before
    stem = _WAS_SUFFIX.sub("", stem)
    head, tail = stem[:-_MAX_TAIL], stem[-_MAX_TAIL:]
    match = _NUMBERED.fullmatch(tail)
    # A huge number is no frame number.
    return (head + match[1], int(match[2])) if match is not None and len(match[2]) < 19 else (stem, None)


def _bursts(images: Sequence[Mapping[str, Any]], folder: Path) -> dict[int, tuple[str, int]]:
    """Returns source and number of the images that are photographs of a known time, by index."""
    found = ImageFolder(folder)

    def taken_s(index: int) -> int | None:
        name = str(images[index]["file_name"])
        if _given_source(images[index]) is not None or ".rf." in name:
            return None  # Roboflow's copies of a photograph have no time
        try:
            file = found.locate(name)
            if file is None:
                return None
            with file.open("rb") as stream:
                return read_header(stream).taken_s
        except (OSError, DataError):  # the check of the images names it
            return None

    with ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="times") as workers:
        times = list(workers.map(taken_s, range(len(images))))
    # A clock that stands still tells nothing.
    counts = Counter(times)
    most = max(_MAX_SAME_TIME, len(images) // 10)
    order = sorted((time, index) for index, time in enumerate(times) if time is not None and counts[time] <= most)
    bursts, start, last = {}, 0, -math.inf
    for time, index in order:
        start = start if time - last <= _BURST_GAP_S else time
        bursts[index] = (f"photographs from {start}", time)
        last = time
    return bursts


def _given_source(image: Mapping[str, Any]) -> str | None:
    return next((str(image[key]) for key in ("source", "video_id") if isinstance(image.get(key), (str, int))), None)


def _units(
    images: Sequence[Mapping[str, Any]], wanted: int, bursts: Mapping[int, tuple[str, int]]
) -> dict[str, list[int]]:
    """Returns the indices of the images that must stay together, by name of the source or block."""
    sources: dict[str, list[tuple[int, int]]] = defaultdict(list)
    numbered: dict[str, set[int]] = defaultdict(set)
    for index, image in enumerate(images):
        by_name = source_of(_given_source(image) or str(image["file_name"]))
        source, number = bursts.get(index, by_name)
        sources[source].append((-1 if number is None else number, index))
        numbered[source].add(-1 if number is None else number)
    units = {}
    for source, members in sources.items():
        members.sort()
        numbers = sorted(numbered[source])
        if len(members) <= max(wanted, len(images) // 3) and len(sources) > 2:
            units[source] = [index for _, index in members]
            continue
        # Neighbours stay together; so do the copies of one frame.
        size = max(1, min(wanted // 2, -(-len(numbers) // _NUM_BLOCKS)))
        block_of = {number: position // size for position, number in enumerate(numbers)}
        for number, index in members:
            units.setdefault(f"{source} block {block_of[number]}", []).append(index)
    return units


def _part(content: Content, indices: Sequence[int], rule: str, *, keeps_problems: bool) -> Content:
    """Returns a part of a set; the training part keeps the problems so far, so that each is reported once."""
    images = content.root["images"]
    own = {images[index]["id"] for index in indices}
    boxes = content.root["annotations"]
    kept = [number for number, box in enumerate(boxes) if box["image_id"] in own]
    root = {
        **content.root,
        "images": [images[index] for index in indices],
        "annotations": [boxes[number] for number in kept],
    }
    names = content.box_names
    return Content(
        root=root,
        sha256=hashlib.sha256(f"{content.sha256} {rule}".encode()).hexdigest(),
        box_names=None if names is None else tuple(names[number] for number in kept),
        problems=content.problems if keeps_problems else Problems(),
        is_repaired=content.is_repaired,
        is_relative=content.is_relative,
    )
