"""The outputs of a run: those of the flags of `edgerpn run`, and the tables `[[outputs]]` of its settings.

`--output DIR` and `--video DIR` write the annotated pictures of every source into one folder, by the kind of the source
alone: images under their own names; of a video file one whole video, annotated.mp4, or NAME.mp4 when the run has
several sources; of a live source segments, NAME-20260131T120000.000Z.mp4. `--output` adds proposals.jsonl. The list
.edgerpn in a folder names the files that runs have made there: another run replaces these, and no other file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgerpn.errors import ConfigError, SinkError, UsageError
from edgerpn.files import write_bytes
from edgerpn.manifest import Manifest, manifest_path
from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP, Painter
from edgerpn.runtime.frame import Event, Result, Source
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig
from edgerpn.runtime.sinks.contract import ModelUser, Sink
from edgerpn.runtime.sinks.jsonl import JsonLinesConfig
from edgerpn.runtime.sinks.kinds import Output, open_sinks
from edgerpn.runtime.sinks.mot import MotSink, is_mot_file
from edgerpn.runtime.sinks.picture_sinks import (
    CODECS,
    ImageFolderSink,
    VideoSink,
    WindowSink,
    annotated_name,
    check_windows,
    free_name,
    free_stem,
)
from edgerpn.runtime.sinks.sink_queue import OutputConfig, QueuedSink, close_sinks
from edgerpn.runtime.sinks.video import VideoConfig, VideoSegmentsSink

_RECORDS = "proposals.jsonl"
_LIST = ".edgerpn"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFlags:
    """Outputs as the command line names them."""

    output: str | None = None
    """Folder for proposals.jsonl and the annotated pictures."""
    jsonl: str | None = None
    """File of JSON lines; - is the standard output."""
    embeddings: Literal["off", "base64"] = "off"
    """Embeddings in the JSON lines."""
    video: str | None = None
    """Video file of one source; or a folder for the annotated pictures of all."""
    mot: str | None = None
    """File of one source's tracks, .txt or .csv; or a folder for those of all."""
    is_shown: bool = False
    """Whether to open a window for each source."""
    top: int = DEFAULT_TOP
    """Maximum number of proposals drawn."""
    nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better drawn one, of its class where the model has classes, above which a proposal is not drawn."""

    @property
    def folders(self) -> list[str]:
        """Folders for annotated pictures."""
        folders = [] if self.video is None or self.is_video_file else [self.video]
        return folders if self.output is None else [*folders, self.output]

    @property
    def is_video_file(self) -> bool:
        """Whether `video` names a file, and not a folder."""
        return self.video is not None and Path(self.video).suffix.lower() in CODECS

    @property
    def line_files(self) -> list[str]:
        """Files of JSON lines; - is the standard output."""
        files = [] if self.jsonl is None else [self.jsonl]
        return files if self.output is None else [*files, str(Path(self.output) / _RECORDS)]


def check_outputs(
    flags: OutputFlags,
    tables: Sequence[Output],
    model: str | Path,
    config: StreamsConfig,
    opened: Mapping[str, Source],
) -> None:
    """Makes sure that windows can open, and that no output would overwrite an input or another output.

    Raises:
        ConfigError: One would.
        UsageError: The flags exclude each other, or one file would have to hold several sources.
        SinkError: There is no display, or no windows in this OpenCV.
    """
    if flags.is_shown:
        check_windows()
    if flags.embeddings != "off" and not flags.line_files:
        raise UsageError(["--embeddings is for JSON lines: name a file with --jsonl FILE, or a folder with -o DIR"])
    if flags.mot is not None:
        _check_mot(flags.mot, config)
    if flags.is_video_file:
        _check_single(f"--video {flags.video}", config)
    elif flags.video is not None and (suffix := Path(flags.video).suffix) and not Path(flags.video).is_dir():
        problem = f"--video {flags.video}: cannot write video as {suffix!r}; known: {', '.join(CODECS)}, or a folder"
        raise UsageError([problem])
    listed = _image_paths(opened)
    images = {path.resolve() for path in listed}
    inputs = {Path(model).resolve(), manifest_path(model).resolve(), *images}
    inputs |= {Path(source.spec.path).resolve() for source in config.sources if not source.is_live}
    files = [file for file in (*flags.line_files, *_table_files(tables)) if file != "-"]
    single = [flags.video] if flags.video is not None and flags.is_video_file else []
    single += [flags.mot] if flags.mot is not None and is_mot_file(flags.mot) else []
    files += single
    names = _video_names(config, opened).values()
    files += [str(Path(folder) / name) for folder in flags.folders for name in names]
    targets = [Path(file).resolve() for file in files]
    problems = [f"{path}: this is an input of the run, and would be overwritten" for path in targets if path in inputs]
    problems += [f"{path}: this is a folder, expected the name of a file" for path in targets if path.is_dir()]
    if config.is_live:
        problems += [
            f"{file}: this file exists, and a recording of a live source cannot be made again; name another file, or a "
            "folder, which gets new files"
            for file in single
            if Path(file).is_file()
        ]
    segments = [table.config.folder for table in tables if isinstance(table.config, VideoConfig)]
    targets += [Path(folder).resolve() for folder in (*flags.folders, *segments)]
    problems += [f"{path}: given for two outputs" for path in sorted(set(targets)) if targets.count(path) > 1]
    image_folders = {path.parent for path in images} | {folder.resolve() for folder in {path.parent for path in listed}}
    for folder, made in _made_names(flags, config, opened).items():
        if folder in flags.folders and Path(folder).resolve() in image_folders:
            problems.append(f"{folder}: the images of a source lie there, and would be overwritten")
        elif foreign := _foreign_file(Path(folder), made):
            problems.append(
                f"{foreign}: would be overwritten, and no earlier run made this file; choose another folder"
            )
        if Path(folder).is_file():
            problems.append(f"{folder}: this is a file, expected a folder (or a video file, .mp4 or .avi)")
    if problems:
        raise ConfigError(problems)


def check_vectors(flags: OutputFlags, tables: Sequence[Output], manifest: Manifest) -> None:
    """Makes sure that a model has the outputs that a sink needs.

    Raises:
        ConfigError: It does not have them.
        SinkError: A file of the settings does not fit them.
    """
    asked = [flags.embeddings, *(getattr(table.config, "embeddings", "off") for table in tables)]
    if set(asked) != {"off"} and "embeddings" not in manifest.outputs_by_role:
        raise ConfigError(
            [
                f"embeddings: the model {manifest.name} does not have them; export it again with --embeddings, or "
                "leave them out of the records"
            ]
        )
    for table in tables:
        if isinstance(table.config, ModelUser):
            table.config.check_model(manifest)


def open_outputs(
    flags: OutputFlags, tables: Sequence[Output], config: StreamsConfig, opened: Mapping[str, Source]
) -> list[Sink]:
    """Opens every output, each behind a queue of its own, but for windows, which belong to the main thread.

    Args:
        flags: From the command line.
        tables: From the settings.
        config: The sources of the run.
        opened: Those of them that are files, by name.

    Raises:
        SinkError: One cannot be opened; those opened before are closed.
    """
    is_live = config.is_live
    # A run of files waits for its outputs, however slow they are: its records must be complete.
    queue = OutputConfig() if is_live else OutputConfig(block_s=math.inf, drain_s=math.inf)
    lines = [
        Output(
            kind="jsonl",
            config=JsonLinesConfig(
                path=file, block_s=queue.block_s, drain_s=queue.drain_s, embeddings=flags.embeddings
            ),
        )
        for file in flags.line_files
    ]
    sinks: list[Sink] = []
    painter = Painter(top=flags.top, nms_iou=flags.nms_iou)
    try:
        # Those that can fail without leaving a file behind come first.
        if flags.is_shown:
            sinks.append(Windows(lambda name: WindowSink(painter, title=f"edgerpn: {name}")))
        if flags.video is not None and flags.is_video_file:
            fps = next((source.fps for source in opened.values()), None)
            video = VideoSink(flags.video, painter, fps=fps)
            sinks.append(QueuedSink(video, queue, kind="video", is_live=is_live))
        if flags.mot is not None:
            names = _stems(source for source in config.sources if not source.is_live)
            sinks.append(QueuedSink(MotSink(flags.mot, names, is_live=is_live), queue, kind="mot", is_live=is_live))
        for folder in flags.folders:
            pictures = PictureFolder(folder, config, opened, top=flags.top, nms_iou=flags.nms_iou)
            sinks.append(QueuedSink(pictures, queue, kind="pictures", is_live=is_live))
        sinks.extend(open_sinks([*tables, *lines], is_live=is_live))
        for folder, made in _made_names(flags, config, opened).items():
            _add_to_list(Path(folder), made)
    except BaseException:
        close_sinks(sinks, timeout_s=1.0)
        raise
    return sinks


class PictureFolder:
    """The annotated pictures of all sources in one folder, by the kind of each source; see the module."""

    def __init__(
        self,
        folder: str,
        config: StreamsConfig,
        opened: Mapping[str, Source],
        *,
        top: int = DEFAULT_TOP,
        nms_iou: float = DEFAULT_NMS_IOU,
    ) -> None:
        """Makes the folder.

        Args:
            folder: Folder of the files.
            config: The sources.
            opened: Those of them that are files, by name.
            top: Maximum number of proposals drawn.
            nms_iou: IoU with a better drawn one, of its class where the model has classes, above which a proposal is
                not drawn.

        Raises:
            SinkError: The folder cannot be made.
        """
        names = _video_names(config, opened)
        self.target = str(Path(folder, *names.values())) if len(config.sources) == 1 else folder
        self._segment_config = VideoConfig(folder=folder, top=top, nms_iou=nms_iou)
        painter = Painter(top=top, nms_iou=nms_iou)
        self._images = ImageFolderSink(folder, painter, _image_names(opened))
        self._videos = {
            source: VideoSink(Path(folder) / name, painter, fps=opened[source].fps if source in opened else None)
            for source, name in names.items()
        }
        self._segments: VideoSegmentsSink | None = None

    def write(self, result: Result) -> None:
        if result.frame.path is not None:
            self._images.write(result)
        elif (video := self._videos.get(result.frame.source)) is not None:
            video.write(result)
        else:
            if self._segments is None:
                self._segments = VideoSegmentsSink(self._segment_config, is_live=True)
            self._segments.write(result)

    def event(self, event: Event) -> None:
        """Finishes the segment of a live source that stalled or ended."""
        video = self._videos.get(event.source)
        if video is not None:
            video.event(event)
        elif self._segments is not None:
            self._segments.event(event)

    def close(self) -> None:
        """Finishes all files; raises the first failure when all are closed."""
        close_sinks([*self._videos.values(), *([self._segments] if self._segments is not None else [])])


class Windows:
    """A window for each source; `is_closed_by_user` after Q or Escape in any."""

    target = ""

    def __init__(self, make: Callable[[str], WindowSink]) -> None:
        """Opens a window at the first result of its source."""
        self._make = make
        self._windows: dict[str, WindowSink] = {}

    @property
    def is_closed_by_user(self) -> bool:
        """Whether the user wants to end the run."""
        return any(window.is_closed_by_user for window in self._windows.values())

    def write(self, result: Result) -> None:
        source = result.frame.source
        if source not in self._windows:
            self._windows[source] = self._make(source)
        self._windows[source].write(result)

    def event(self, event: Event) -> None:
        """Closes the window of a source that was removed."""
        if event.reason == "removed" and (window := self._windows.pop(event.source, None)) is not None:
            window.close()

    def close(self) -> None:
        for window in self._windows.values():
            window.close()


def _table_files(tables: Sequence[Output]) -> list[str]:
    """Returns the files that tables of JSON lines write, also for another output."""
    outputs = [output for table in tables for output in (table, table.to) if output is not None]
    return [output.config.path for output in outputs if isinstance(output.config, JsonLinesConfig)]


def _image_paths(opened: Mapping[str, Source]) -> list[Path]:
    return [path for source in opened.values() for path in getattr(source, "paths", ())]


def _image_names(opened: Mapping[str, Source]) -> dict[tuple[str, Path], str]:
    """Returns the name of each annotated image, by source and path: a glob may find equal names in several folders."""
    names: dict[tuple[str, Path], str] = {}
    taken: set[str] = set()
    for label, source in opened.items():
        for path in dict.fromkeys(getattr(source, "paths", ())):
            names[label, path] = free_name(annotated_name(path), taken.__contains__)
            taken.add(names[label, path])
    return names


def _made_names(flags: OutputFlags, config: StreamsConfig, opened: Mapping[str, Source]) -> dict[str, set[str]]:
    """Returns the names of the files that a run writes into each folder of its flags, but for those that are new."""
    pictures = {*_video_names(config, opened).values(), *_image_names(opened).values()}
    made = {folder: pictures for folder in flags.folders}
    if flags.mot is not None and not is_mot_file(flags.mot) and not config.is_live:
        made[flags.mot] = made.get(flags.mot, set()) | {f"{stem}.txt" for stem in _stems(config.sources).values()}
    return made


def _foreign_file(folder: Path, names: set[str]) -> Path | None:
    """Returns a file of one of the `names` in a folder that no earlier run has made, if there is one."""
    if (folder / _RECORDS).exists() and not (folder / _LIST).exists():  # a folder of version 0.1
        return None
    return next((folder / name for name in sorted(names - _read_list(folder)) if (folder / name).exists()), None)


def _read_list(folder: Path) -> set[str]:
    try:
        return {os.fsdecode(line) for line in (folder / _LIST).read_bytes().splitlines()}
    except OSError:
        return set()


def _add_to_list(folder: Path, names: set[str]) -> None:
    """Adds names to the list of the files that runs have made in a folder.

    Raises:
        SinkError: It cannot be written.
    """
    made = _read_list(folder)
    if names <= made and (folder / _LIST).exists():
        return
    try:
        write_bytes(folder / _LIST, b"".join(os.fsencode(f"{name}\n") for name in sorted(made | names)))
    except OSError as error:
        raise SinkError(f"{folder / _LIST}: cannot be written: {error.strerror or error}") from error


def _check_single(flag: str, config: StreamsConfig) -> None:
    if len(config.sources) != 1 or config.has_control:
        found = "others, which may come by HTTP" if config.has_control else f"those of {len(config.sources)}"
        raise UsageError([f"{flag}: one file holds one source; name a folder for {found}"])


def _check_mot(path: str, config: StreamsConfig) -> None:
    if config.track is None:
        raise UsageError([f"--mot {path}: this run has no tracks; add --track, or [track] to the settings"])
    if is_mot_file(path):
        _check_single(f"--mot {path}", config)
    if not is_mot_file(path) and not Path(path).is_dir() and (Path(path).suffix or Path(path).exists() or path == "-"):
        raise UsageError([f"--mot {path}: expected a file, .txt or .csv, or a folder"])


def _plain(source: SourceConfig) -> str:
    """Returns the name of a source of files: that of the file, if it is named by its path."""
    return Path(source.spec.path).stem if source.label == source.spec.shown else source.label


def _stems(sources: Iterable[SourceConfig]) -> dict[str, str]:
    """Returns the name of each source's file, without its suffix."""
    stems: dict[str, str] = {}
    for source in sources:
        stems[source.label] = free_stem(_plain(source), stems.values())
    return stems


def _video_names(config: StreamsConfig, opened: Mapping[str, Source]) -> dict[str, str]:
    """Returns the name of the annotated video of each video file."""
    files = [
        source
        for source in config.sources
        if not source.is_live and not (source.label in opened and opened[source.label].is_images)
    ]
    stems = _stems(files) if len(config.sources) > 1 else {source.label: "annotated" for source in files}
    return {source: f"{stem}.mp4" for source, stem in stems.items()}
