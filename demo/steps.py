"""The demo's video through the runtime, with every stage timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.demo.folder import DemoFolder
from edgerpn.demo.report_pictures import Picture, covered
from edgerpn.demo.synthetic.dataset import SyntheticVideo
from edgerpn.machine import available_cores
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import Painter
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.model import load
from edgerpn.runtime.sinks.picture_sinks import VideoSink
from edgerpn.runtime.sinks.sink import JsonLinesSink, Sink
from edgerpn.runtime.sources.open_source import open_source
from edgerpn.runtime.summary import RunSummary, run_source


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRun:
    """What came of the video."""

    summary: RunSummary
    """Frames, speed and what ran the model."""
    stage_ms: dict[str, list[float]]
    """Milliseconds of each stage for each frame; `write` is drawing and writing."""
    num_objects: int
    """Ground-truth boxes in all frames together."""
    num_covered: int
    """Those that some proposal overlaps by an IoU of at least 0.5."""
    pictures: tuple[Picture, ...]
    """A few frames with their ground truth."""


def run_video(folder: DemoFolder, video: SyntheticVideo, *, num_pictures: int = 2) -> VideoRun:
    """Runs the demo's video through its exported model and writes the JSON lines and the annotated video.

    Args:
        folder: Where everything lies.
        video: The video and its ground truth.
        num_pictures: Frames to keep for the report, spread evenly.

    Raises:
        EdgeRpnError: The first error of model, source or sinks.
    """
    source = open_source(str(folder.source_video))
    total = len(video.boxes_xyxy)
    kept = {round((i + 0.5) * total / num_pictures) for i in range(num_pictures)}
    sinks: list[Sink] = [VideoSink(folder.annotated_video, Painter(), fps=source.fps), JsonLinesSink(folder.results)]
    record = _Record(sinks, video, kept)
    # As `edgerpn run` does it: two frames are in the model at once, and threads - 1 helpers then fill the cores.
    with load(folder.model, threads=max(1, available_cores() - 1)) as model:
        summary = run_source(model, source, [record])
    return VideoRun(
        summary=summary,
        stage_ms=record.stage_ms,
        num_objects=record.num_objects,
        num_covered=record.num_covered,
        pictures=tuple(record.pictures),
    )


class _Record:
    """A sink that passes results on to others and notes how long that took and how good they are."""

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
        """Passes a result on."""
        start = time.perf_counter()
        for sink in self._sinks:
            sink.write(result)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        for stage, duration_ms in {**result.stage_ms, "write": elapsed_ms}.items():
            self.stage_ms.setdefault(stage, []).append(duration_ms)
        self._compare(result)

    def event(self, event: Event) -> None:
        """Passes an event on."""
        for sink in self._sinks:
            sink.event(event)

    def close(self) -> None:
        """Closes all of them; the first failure is raised when the others are closed."""
        first, *others = self._sinks
        try:
            first.close()
        finally:
            for sink in others:
                sink.close()

    def _compare(self, result: Result) -> None:
        picture = to_picture(
            f"Frame {result.index} of the video", result.image, self._boxes_xyxy[result.index], result.proposals
        )
        found = covered(picture)
        self.num_objects += len(found)
        self.num_covered += int(found.sum())
        if result.index in self._kept:
            self.pictures.append(picture)


def to_picture(
    name: str, image: npt.NDArray[np.uint8], gt_boxes_xyxy: npt.NDArray[np.float32], proposals: Proposals
) -> Picture:
    """A picture for the report."""
    return Picture(
        name=name,
        image=image,
        gt_boxes_xyxy=gt_boxes_xyxy,
        proposals_xyxy=proposals.boxes,
        scores=proposals.scores,
    )
