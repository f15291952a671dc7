"""The demo's folder, and its video through the exported model with every stage timed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.demo.starts import STARTS
from edgerpn.demo.synthetic.dataset import SyntheticVideo
from edgerpn.errors import ConfigError
from edgerpn.machine import available_cores
from edgerpn.manifest import manifest_path
from edgerpn.proposals import Proposals, pairwise_iou
from edgerpn.runtime.draw import Painter
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.model import load
from edgerpn.runtime.run import RunSummary, SourceConfig, StreamsConfig
from edgerpn.runtime.run.session import run_streams
from edgerpn.runtime.sinks import JsonLinesConfig, Output, open_sinks
from edgerpn.runtime.sinks.contract import Sink
from edgerpn.runtime.sinks.picture_sinks import VideoSink
from edgerpn.runtime.sources.file_sources import open_source

MARKER = "demo.json"
"""File that marks a folder of the demo, which the next demo may replace."""


class DemoFolder:
    """The files of a demo."""

    def __init__(self, path: Path) -> None:
        """Names them; nothing is written yet."""
        self.path = path
        self.data = path / "data"
        """The made-up detection set: train.json, val.json, images/."""
        self.source_video = self.data / "video.mp4"
        self.training = path / "training"
        self.runs = {start: self.training / start for start in STARTS}
        """The trainings by their start: log, settings, all checkpoints."""
        self.checkpoint = path / "best.pt"
        self.model = path / "model.onnx"
        """The exported model; its manifest model.json lies beside it."""
        self.results = path / "proposals.jsonl"
        """Proposals of each frame of the video, one JSON line for each."""
        self.annotated_video = path / "annotated.mp4"
        self.report = path / "report.html"

    def start(self, facts: Mapping[str, object]) -> None:
        """Makes the folder, or clears that of an earlier demo, and writes `facts` into its marker.

        Raises:
            ConfigError: The path holds something else.
        """
        if self.path.exists() and not (self.path.is_dir() and self._is_ours()):
            raise ConfigError(
                [f"--output {self.path}: expected a new or empty folder, or one of an earlier demo; choose another one"]
            )
        for folder in (self.data, self.training):
            shutil.rmtree(folder, ignore_errors=True)
        results = (self.checkpoint, self.model, manifest_path(self.model), self.results)
        for file in (*results, self.annotated_video, self.report):
            file.unlink(missing_ok=True)
        files.write_text(self.path / MARKER, json.dumps(dict(facts), indent=2) + "\n")

    def _is_ours(self) -> bool:
        return (self.path / MARKER).is_file() or not any(self.path.iterdir())


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image with its ground truth and the proposals of the fine-tuned model."""

    name: str
    """Shown below it, such as the file's name."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) BGR."""
    gt_boxes_xyxy: npt.NDArray[np.float32]
    """(M, 4) ground truth, image pixels."""
    proposals: Proposals
    """Best first."""
    before: Proposals | None = None
    """Those of the general weights before any training, best first; None: they are not shown."""

    def covered(self, *, by: Proposals | None = None) -> npt.NDArray[np.bool_]:
        """Finds the ground-truth boxes that some proposal, or some of `by`, overlaps by an IoU of 0.5; (M,) bool."""
        overlap = pairwise_iou(self.gt_boxes_xyxy, (self.proposals if by is None else by).boxes)
        return np.asarray(overlap.max(axis=1, initial=0) >= 0.5)


_NUM_PICTURES = 2
"""Frames of the video in the report, spread evenly."""
# Frames of a file are read ahead, so their waiting time means nothing.
_WAITING = ("capture_lag", "wait")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRun:
    """The results of the video."""

    summary: RunSummary
    """Frames, speed and backend."""
    stage_ms: dict[str, list[float]]
    """Milliseconds of each stage for each frame; `write` is drawing and writing."""
    num_objects: int
    """Ground-truth boxes in all frames together."""
    num_covered: int
    """Those that some proposal overlaps by an IoU of at least 0.5."""
    pictures: tuple[Picture, ...]
    """A few frames with their ground truth."""


def run_video(folder: DemoFolder, video: SyntheticVideo) -> VideoRun:
    """Runs the demo's video through its exported model and writes the JSON lines and the annotated video.

    Args:
        folder: Of the demo.
        video: The video and its ground truth.

    Raises:
        EdgeRpnError: The first error of model, source or sinks.
    """
    config = SourceConfig(source=str(folder.source_video))
    source = open_source(config.source, name=config.label)
    total = len(video.boxes_xyxy)
    kept = {round((i + 0.5) * total / _NUM_PICTURES) for i in range(_NUM_PICTURES)}
    lines = Output(kind="jsonl", config=JsonLinesConfig(path=str(folder.results)))
    video_sink = VideoSink(folder.annotated_video, Painter(), fps=source.fps)
    sinks: list[Sink] = [video_sink, *open_sinks([lines], is_live=False)]
    record = _Record(sinks, video, kept)
    # As `edgerpn run` does it: two frames are in the model at once, and threads - 1 helpers then fill the cores.
    with load(folder.model, threads=max(1, available_cores() - 1)) as model:
        summary = run_streams(model, StreamsConfig(sources=(config,)), [record], opened={config.label: source})
    return VideoRun(
        summary=summary,
        stage_ms=record.stage_ms,
        num_objects=record.num_objects,
        num_covered=record.num_covered,
        pictures=tuple(record.pictures),
    )


class _Record:
    """A sink that passes results on to others and records the time that they take and the objects that are covered."""

    def __init__(self, sinks: Sequence[Sink], video: SyntheticVideo, kept: set[int]) -> None:
        self._sinks = sinks
        self._boxes_xyxy = video.boxes_xyxy
        self._kept = kept
        self.target = ", ".join(sink.target for sink in sinks)
        self.stage_ms: dict[str, list[float]] = {}
        self.num_objects = 0
        self.num_covered = 0
        self.pictures: list[Picture] = []

    def write(self, result: Result) -> None:
        start = time.perf_counter()
        for sink in self._sinks:
            sink.write(result)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        for stage, duration_ms in {**result.stage_ms, "write": elapsed_ms}.items():
            if stage not in _WAITING:
                self.stage_ms.setdefault(stage, []).append(duration_ms)
        self._compare(result)

    def event(self, event: Event) -> None:
        for sink in self._sinks:
            sink.event(event)

    def close(self) -> None:
        """Closes all sinks, then raises the first failure."""
        first, *others = self._sinks
        try:
            first.close()
        finally:
            for sink in others:
                sink.close()

    def _compare(self, result: Result) -> None:
        picture = Picture(
            name=f"Frame {result.index} of the video",
            image=result.image,
            gt_boxes_xyxy=self._boxes_xyxy[result.index],
            proposals=result.proposals,
        )
        found = picture.covered()
        self.num_objects += len(found)
        self.num_covered += int(found.sum())
        if result.index in self._kept:
            self.pictures.append(picture)
