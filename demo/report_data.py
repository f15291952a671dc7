"""What the demo's report says: figures, pictures, versions and how to go on."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import onnx
import onnxruntime
import torch

import edgerpn
from edgerpn.demo.folder import DemoFolder
from edgerpn.demo.report import Headline, ReportData, StageTiming, write_report
from edgerpn.demo.report_pictures import Picture
from edgerpn.demo.steps import VideoRun, to_picture
from edgerpn.demo.synthetic.dataset import SyntheticVideo
from edgerpn.export.onnx.export import ExportResult
from edgerpn.machine import cpu_name
from edgerpn.runtime.model import load
from edgerpn.train.checkpoint import load_model
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import read_coco, read_image
from edgerpn.train.evaluation import Evaluation
from edgerpn.train.recall.average_recall import BUDGETS
from edgerpn.train.run.loop import TrainResult

_NUM_PICTURES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFacts:
    """Everything that the demo has measured."""

    folder: DemoFolder
    """Where it lies."""
    settings: TrainSettings
    """Of the training."""
    training: TrainResult
    """The log."""
    evaluation: Evaluation
    """Of the checkpoint."""
    export: ExportResult
    """With the recall of the graph."""
    video: SyntheticVideo
    """The source."""
    video_run: VideoRun
    """Its results."""


def write_demo_report(facts: DemoFacts) -> dict[str, Mapping[str, float]]:
    """Writes report.html; returns the columns of its recall table."""
    columns: dict[str, Mapping[str, float]] = {"checkpoint": facts.evaluation.metrics, "ONNX": _graph_metrics(facts)}
    height, width = facts.settings.data.input_hw
    minutes = facts.settings.loop.minutes
    data = ReportData(
        title="EdgeRPN demo",
        introduction=(
            f"A Region Proposal Network that learned for {minutes:g} minutes on made-up images, was exported to ONNX "
            "and then ran on a made-up video. It finds things without knowing what they are. Every figure on this page "
            "was measured in this run; a real training takes longer and uses photographs."
        ),
        headlines=_headlines(facts, columns),
        history=facts.training.history,
        metrics=columns,
        metrics_note=_recall_note(facts),
        pictures=(*_val_pictures(facts), *facts.video_run.pictures),
        timings=_timings(facts.video_run),
        timings_note=_timings_note(facts),
        versions=versions(),
        commands=_commands(facts.folder),
        notes=(
            f"Network input {width} x {height}, seed {facts.settings.loop.seed}; "
            f"all settings are in {facts.folder.training / 'config.toml'}.",
        ),
    )
    write_report(facts.folder.report, data)
    return columns


def _graph_metrics(facts: DemoFacts) -> dict[str, float]:
    """Recall of the graph; that at more proposals than it gives would only repeat a smaller one."""
    recall, capacity = facts.export.manifest.recall, facts.export.manifest.proposals.num_proposals
    beyond = {f"AR@{budget}" for budget in BUDGETS if budget > capacity}
    return {name: value for name, value in (recall.metrics if recall else ()) if name not in beyond}


def _headlines(facts: DemoFacts, columns: Mapping[str, Mapping[str, float]]) -> tuple[Headline, ...]:
    model, checkpoint = load_model(facts.folder.checkpoint)
    height, width = facts.video.hw
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = max((int(row["step"]) for row in facts.training.history), default=checkpoint.step)
    seen = steps * facts.settings.data.batch_size
    return (
        Headline(
            label="AR@100",
            value=f"{columns['ONNX'].get('AR@100', math.nan):.3f}",
            note=f"exported model, {facts.evaluation.num_images} validation images",
        ),
        Headline(
            label="Speed",
            value=f"{facts.video_run.summary.fps:.1f} fps",
            note=f"{width} x {height} video: decode, propose, draw and write",
        ),
        Headline(label="Parameters", value=f"{parameters / 1e6:.2f} M", note=f"backbone {model.config.backbone}"),
        Headline(label="Training", value=f"{facts.settings.loop.minutes:g} min", note=f"{steps} steps, {seen} images"),
    )


def _recall_note(facts: DemoFacts) -> str:
    ms = facts.evaluation.latency_ms["p50"]
    return (
        f"{facts.evaluation.num_images} validation images that the training never saw. {_sentence(facts.export)} "
        f"In PyTorch an image takes {ms:.1f} ms (median)."
    )


def _sentence(export: ExportResult) -> str:
    text = export.parity.summary()
    return f"{text[0].upper()}{text[1:]}."


def _val_pictures(facts: DemoFacts) -> list[Picture]:
    """Validation images spread over the set, with the exported model's proposals."""
    records = read_coco(facts.folder.data / "val.json", facts.folder.data / "images", verify="none").records
    chosen = records[:: max(1, len(records) // _NUM_PICTURES)][:_NUM_PICTURES]
    pictures = []
    with load(facts.folder.model) as model:
        for record in chosen:
            image = read_image(record.file)
            pictures.append(to_picture(record.file.name, image, record.boxes_xyxy, model(image)))
    return pictures


def _timings(video_run: VideoRun) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(stage=stage, median_ms=float(np.median(durations)), p95_ms=float(np.percentile(durations, 95)))
        for stage, durations in video_run.stage_ms.items()
    )


def _timings_note(facts: DemoFacts) -> str:
    run = facts.video_run
    share = run.num_covered / max(1, run.num_objects)
    return (
        f"{run.summary.num_frames} frames with {run.summary.backend}. The stages overlap, so frames leave the pipeline "
        f"faster than their sum. Of the {run.num_objects} objects in these frames, {run.num_covered} ({share:.0%}) are "
        "covered by a proposal at IoU 0.5."
    )


def _commands(folder: DemoFolder) -> tuple[tuple[str, str], ...]:
    model = shlex.quote(str(folder.model))
    return (
        ("Watch a camera through this model:", f"edgerpn run {model} 0 --show"),
        ("See what is inside it:", f"edgerpn inspect {model}"),
        (
            "Train on your own photographs: a folder with train.json, val.json (COCO) and images/:",
            "edgerpn train --data my-photos --out my-run --minutes 30",
        ),
        ("Measure the result:", "edgerpn eval my-run/best.pt --data my-photos/val.json --images my-photos/images"),
        (
            "Export it, and run it on a video:",
            "edgerpn export my-run/best.pt -o my-run/model.onnx\n"
            "edgerpn run my-run/model.onnx my-video.mp4 --out my-results",
        ),
    )


def versions() -> dict[str, str]:
    """What the demo ran with: packages and machine."""
    found = {
        "edgerpn": edgerpn.__version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "OpenCV": cv2.__version__,
        "NumPy": np.__version__,
        "system": platform.platform(),
        "CPU": f"{cpu_name()}, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found
