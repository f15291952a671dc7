"""The inputs of a prediction: images and videos by folder, glob, list or name, each with its id and its name."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from edgerpn.errors import ConfigError, DataError
from edgerpn.export.prediction.pipeline import Shot
from edgerpn.files import fitting, printable
from edgerpn.images.decoding import damage_note, decode_image, read_bytes
from edgerpn.images.formats import is_image_file
from edgerpn.images.header import Exif
from edgerpn.machine import threaded_map
from edgerpn.runtime.frame import Event, Frame, Source
from edgerpn.runtime.redaction import redact_url
from edgerpn.runtime.sources.file_sources import ImageSource, open_source
from edgerpn.runtime.sources.spec import parse_source

LIST_SUFFIX = ".txt"
"""Files that list images and videos, a path in each line."""

_READ_AHEAD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """An image, or a video."""

    path: Path
    """The file."""
    name: str
    """Of an image: its path below the common folder of all images. Of a video: the first part of its frames' names. A
    part too long for the outputs is cut."""
    is_video: bool = False
    """Whether it is a video."""
    image_id: int | str | None = None
    """Id of the image in a data set; None: images and frames are numbered from 1."""
    num_frames: int | None = 1
    """Number of frames; of a video as the file states it, None: unknown."""


def find_inputs(specs: Sequence[str], ids: Mapping[Path, int | str] | None = None) -> list[InputFile]:
    """Finds the images and videos that a user names.

    Args:
        specs: Images, videos, folders or globs of images, and lists (.txt); none: all images of `ids`.
        ids: Ids of a data set's images, by their real paths; None: no data set.

    Returns:
        Each file once: in the given order, or with a data set in the order of its ids.

    Raises:
        ConfigError: A list cannot be read or holds a URL, or an image is not in the data set.
        StreamOpenError: A file, folder or video cannot be opened.
    """
    paths = itertools.chain.from_iterable(map(_expand, specs)) if specs else iter(ids or ())
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(_place(path), path)
    base = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    named = [
        (path, _is_video(path), fitting(Path(os.path.relpath(absolute, base)).as_posix(), ".jpg"))
        for absolute, path in found.items()
    ]
    # Those of all images first: a video makes way for an image behind it too.
    names = {relative for _, is_video, relative in named if not is_video}
    files = []
    for path, is_video, relative in named:
        if is_video:
            stem = _free_stem(fitting(str(Path(relative).with_suffix("")), "-123_1234567.jpg"), names)
            files.append(InputFile(path=path, name=stem, is_video=True, num_frames=_num_frames(path)))
        else:
            files.append(InputFile(path=path, name=relative))
    return files if ids is None else _with_ids(files, ids)


def digest(files: Sequence[InputFile]) -> str:
    """Returns a hash of the inputs' places, names, ids, sizes and times of change.

    Cameras write one name and one size day after day, so that names and sizes alone would call other images the same.
    """
    summary = hashlib.sha256()
    for file in files:
        try:
            status = file.path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "unreadable"
        place = os.fsencode(_place(file.path))
        summary.update(f"{file.image_id} {state} {file.is_video} {file.name} ".encode() + place + b"\n")
    return summary.hexdigest()


def _place(path: Path) -> str:
    """Returns the one path of a file, however its folder is spelled; a file that is a link is a file of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def total_shots(files: Sequence[InputFile]) -> int | None:
    """Returns the number of images and frames; None if a video does not state its own."""
    counts = [file.num_frames for file in files]
    return None if None in counts else sum(count or 0 for count in counts)


def read_shots(
    files: Sequence[InputFile], *, skip: int, num_threads: int, exif: Exif = "ignore"
) -> Generator[Shot, None, None]:
    """Reads the images and frames in order, several images at the same time.

    Args:
        files: The inputs.
        skip: Number of images and frames at the start that are not wanted.
        num_threads: Threads that decode images.
        exif: Whether to turn images by their EXIF orientation.
    """
    number = 0
    for is_video, group in itertools.groupby(files, key=lambda file: file.is_video):
        if not is_video:
            images = list(enumerate(group, start=number + 1))
            number += len(images)
            wanted = [(position, file) for position, file in images if position > skip]
            ahead = num_threads + _READ_AHEAD
            read = partial(_read_image, exif)
            with closing(threaded_map(read, wanted, num_threads=num_threads, ahead=ahead)) as shots:
                yield from shots
            continue
        for file in group:
            for frame_number, item in enumerate(_video_items(file)):
                number += 1
                if number > skip:
                    yield _shot_of_frame(file, number, frame_number, item)


def _expand(spec: str) -> list[Path]:
    if spec.lower().endswith(LIST_SUFFIX) and os.path.isfile(spec):
        return _listed(Path(spec))
    path = Path(parse_source(spec).path)
    if path.is_file() and not _is_video(path):
        return [path]
    source = open_source(spec)
    try:
        return list(source.paths) if isinstance(source, ImageSource) else [path]
    finally:
        _end(source)


def _listed(file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: this list cannot be read as UTF-8 text: {error}"]) from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise ConfigError([f"{file}: this list is empty; expected the path of an image or a video in each line"])
    live = next((name for name in names if "://" in name), None)
    if live is not None:
        shown = printable(redact_url(live))
        raise ConfigError([f"{file}: {shown}: a URL; expected the path of an image or a video in each line"])
    # As YOLO's tools do it: below the list's folder, else below the working folder.
    places = [(file.parent / name, Path(name)) for name in names]
    return [here if here.exists() and not beside.exists() else beside for beside, here in places]


def _is_video(path: Path) -> bool:
    """Whether it is a video; a file that does not exist counts as an image."""
    return path.is_file() and not is_image_file(path)


def _free_stem(stem: str, names: set[str]) -> str:
    """Returns a first part of names that no other name begins with."""
    free, number = stem, 1
    while any(name.startswith(f"{free}_") for name in names):
        number += 1
        free = f"{stem}-{number}"
    names.add(f"{free}_")
    return free


def _num_frames(path: Path) -> int | None:
    source = open_source(path)
    try:
        return source.num_frames
    finally:
        _end(source)


def _end(source: Source) -> None:
    """Closes an opened file that nothing will iterate over: the end of the iteration frees it."""
    source.close()
    for _ in source:
        break


def _with_ids(files: list[InputFile], ids: Mapping[Path, int | str]) -> list[InputFile]:
    videos = [file for file in files if file.is_video]
    if videos:
        raise ConfigError([f"{videos[0].path}: this is a video, and --data has ids of images only"])
    by_path = {Path(os.path.realpath(file.path)): file for file in files}
    strangers = [path for path in by_path if path not in ids]
    if strangers:
        raise ConfigError(
            [
                f"{strangers[0]}: this image is not in the data set of --data ({len(strangers)} of {len(files)} are "
                "not); name its split with --split val=NAME, or leave out --data"
            ]
        )
    return [
        InputFile(path=by_path[path].path, name=by_path[path].name, image_id=image_id)
        for path, image_id in ids.items()
        if path in by_path
    ]


def _read_image(exif: Exif, entry: tuple[int, InputFile]) -> Shot:
    number, file = entry
    image_id = number if file.image_id is None else file.image_id
    image, problem, damage = None, "", ""
    try:
        data, header = read_bytes(file.path)
        image, _ = decode_image(cv2, data, header, file.path, exif=exif)
        damage = damage_note(data, header, file.path)
    except DataError as error:
        problem = printable(str(error))
    return Shot(
        index=number - 1,
        image_id=image_id,
        file_name=file.name,
        path=file.path,
        frame=None,
        image=image,
        problem=problem,
        damage=damage,
    )


def _video_items(file: InputFile) -> Iterator[Frame | Event]:
    """Yields the frames of a video, decoded ahead of time; behind them an event when the file is damaged."""
    source = open_source(file.path)
    items = iter(source)

    def advance(_: None) -> Frame | Event | None:
        return next(items, None)

    try:
        # One thread, because frames come one after the other.
        with closing(threaded_map(advance, itertools.repeat(None), num_threads=1, ahead=_READ_AHEAD)) as found:
            for item in found:
                if item is None:
                    return
                yield item
    finally:
        source.close()


def _shot_of_frame(file: InputFile, number: int, frame_number: int, item: Frame | Event) -> Shot:
    return Shot(
        index=number - 1,
        image_id=number,
        file_name=f"{file.name}_{frame_number:06d}.jpg",
        path=file.path,
        frame=frame_number,
        image=item.image if isinstance(item, Frame) else None,
        problem="" if isinstance(item, Frame) else item.message,
    )
