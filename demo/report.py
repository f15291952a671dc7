"""The demo's report: one HTML page. The sections take plain data and return HTML; every text is escaped."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

import edgerpn
from edgerpn import files
from edgerpn.demo.charts import line_chart
from edgerpn.demo.starts import STARTS, StartedRun, start_detector
from edgerpn.demo.steps import DemoFolder, Picture, VideoRun
from edgerpn.demo.synthetic.dataset import SyntheticVideo
from edgerpn.machine import cpu_name
from edgerpn.manifest import Manifest
from edgerpn.models import GENERAL
from edgerpn.page import box_rect, head_cells, headlines, jpeg_uri, page, section, table, text_pairs
from edgerpn.proposals import Proposals
from edgerpn.runtime.model import load
from edgerpn.train.checkpoint import load_model
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import read_coco, read_image
from edgerpn.train.network.detector import detect
from edgerpn.train.recall.average_recall import BUDGETS
from edgerpn.train.recall.measurement import Evaluation

_METRICS = {
    "AR@10": "average recall, 10 proposals per image",
    "AR@100": "average recall, 100 proposals",
    "AR@300": "average recall, 300 proposals",
    "AR@1000": "average recall, 1000 proposals",
    "AR@100-small": "small objects (below 32 x 32 px), 100 proposals",
    "AR@100-medium": "medium objects (up to 96 x 96 px), 100 proposals",
    "AR@100-large": "large objects, 100 proposals",
    "recall@100-iou50": "share of objects covered at IoU 0.5, 100 proposals",
    "recall@100-iou70": "share of objects covered at IoU 0.7, 100 proposals",
}
"""Metrics in the order of the table, and their meaning; others follow under their own name."""

_NUM_PICTURES = 4
_NUM_SHOWN = 25
_PICTURE_WIDTH_PX = 640
_PICTURE_QUALITY = 82


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFacts:
    """Everything that the demo has measured."""

    folder: DemoFolder
    settings: TrainSettings
    """Of the fine-tuning."""
    runs: Mapping[str, StartedRun]
    """The trainings; the model is that of the general weights."""
    evaluation: Evaluation
    """Of the model's checkpoint."""
    export: Manifest
    """With the recall of the graph."""
    video: SyntheticVideo
    video_run: VideoRun


def write_report(facts: DemoFacts) -> dict[str, Mapping[str, float]]:
    """Writes report.html; returns the columns of its recall table."""
    columns: dict[str, Mapping[str, float]] = {"checkpoint": facts.evaluation.metrics, "ONNX": _graph_metrics(facts)}
    (height, width), minutes = facts.settings.data.input_hw, facts.settings.loop.minutes
    model, _ = load_model(facts.folder.checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    introduction = (
        f"A Region Proposal Network of {parameters / 1e6:.2f} M parameters with the general weights of edgerpn: first "
        f"without training, then fine-tuned for {minutes:g} min on made-up images, exported to ONNX and run on a "
        "made-up video. It finds objects of any class. Every figure on this page was measured in this run; a real "
        "training takes longer and uses photographs."
    )
    sections = (
        headlines(_headline_figures(facts, columns)),
        comparison(facts.runs, minutes=minutes),
        losses(facts.runs[GENERAL].training.history),
        recall(columns, _recall_note(facts)),
        pictures((*_val_pictures(facts), *facts.video_run.pictures)),
        timings(facts.video_run.stage_ms, _timings_note(facts)),
        commands(_next_commands(facts.folder)),
        text_pairs("Made with", "version", versions()),
        f"<p class='muted'>Network input {width} x {height}, seed {facts.settings.loop.seed}; all settings are in "
        f"{escape(str(facts.folder.runs[GENERAL] / 'config.toml'))}.</p>",
    )
    files.write_text(facts.folder.report, page("EdgeRPN demo", introduction, sections))
    return columns


def comparison(runs: Mapping[str, StartedRun], *, minutes: float) -> str:
    """Chart and table of recall on the validation images, before training and during it, of each start."""
    curves = {STARTS[start]: run.recall_curve for start, run in runs.items()}
    ends = {name: (curve[0][1], curve[-1][1]) for name, curve in curves.items()}
    summary = "; ".join(f"{name}: AR@100 from {first:.3f} to {last:.3f}" for name, (first, last) in ends.items())
    chart = line_chart(
        {name.split()[0]: curve for name, curve in curves.items()},
        x_label="seconds of training (0: none)",
        y_label="AR@100 on the validation images",
        summary=summary,
        wh_in=(4.5, 3),
        names_at_ends=True,
    )
    rows = []
    for name, run in zip(ends, runs.values(), strict=True):
        numbers = (*(_fraction(value) for value in ends[name]), str(run.num_steps))
        cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}</tr>")
    head = head_cells("start", "AR@100 before", f"after {minutes:g} min", "steps")
    caption = "The rest of this page is about the best checkpoint of the training from general weights."
    return section(
        "General weights and a random start",
        "<p>Two trainings of the same time, on the same images with the same settings, differ in their first weights: "
        "the general weights, which come with edgerpn and have not seen these images, and random ones.</p>",
        f"<div class='small-charts'><figure>{chart}</figure><div>{table(head, rows, caption=caption)}</div></div>",
    )


def losses(history: Sequence[Mapping[str, float]]) -> str:
    """Chart of the losses in a training log, by step; nothing for a log without losses."""
    lines = {
        label: [(float(row["step"]), float(row[name])) for row in history if row.get(name) is not None]
        for label, name in (("total", "loss"), ("objectness", "objectness"), ("boxes", "box"))
    }
    total = lines["total"]
    if not total:
        return ""
    chart = line_chart(
        lines,
        x_label="optimizer step",
        y_label="training loss (no unit)",
        summary=f"Training loss, from {total[0][1]:.3g} to {total[-1][1]:.3g} over {total[-1][0]:g} steps",
        smooth=True,
    )
    caption = "<figcaption>Loss per logged step, faint, and its moving average.</figcaption>"
    return section("Fine-tuning", f"<figure><div class='scroll'>{chart}</div>{caption}</figure>")


def recall(columns: Mapping[str, Mapping[str, float]], note: str) -> str:
    """Table of recall, 0..1, by model and metric; with two models also their difference."""
    present = {name for column in columns.values() for name in column}
    names = [name for name in _METRICS if name in present] + sorted(present - _METRICS.keys())
    head = list(columns) + (["difference"] if len(columns) == 2 else [])
    rows = []
    for name in names:
        values = [column.get(name, math.nan) for column in columns.values()]
        cells = [_fraction(value) for value in values] + ([_difference(*values)] if len(values) == 2 else [])
        meaning = f"<span class='meaning'>{escape(_METRICS[name])}</span>" if name in _METRICS else ""
        numbers = "".join(f"<td class='number'>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th scope='row'><code>{escape(name)}</code>{meaning}</th>{numbers}</tr>")
    caption = "Average recall is the mean over IoU 0.50 to 0.95 in steps of 0.05."
    shown = table(head_cells("metric", *head), rows, caption=caption, kind="recall")
    return section("Recall", f"<p>{escape(note)}</p>", shown)


def _fraction(value: float) -> str:
    """Three digits; COCO's -1 means that no such object exists."""
    return f"{value:.3f}" if math.isfinite(value) and value >= 0 else "none"


def _difference(first: float, second: float) -> str:
    if "none" in (_fraction(first), _fraction(second)):
        return "none"
    # One that rounds to zero should not carry a minus sign.
    return f"{second - first:+.4f}".replace("-0.0000", "+0.0000")


def pictures(shown: Sequence[Picture]) -> str:
    """Images with ground truth and proposals side by side."""
    ramp = ",".join(score_color(score) for score in (0, 0.25, 0.5, 0.75, 1))
    key = (
        "<ul class='key'><li><span class='swatch'></span>object, matched at IoU 0.5 by the fine-tuned model</li>"
        "<li class='missed'><span class='swatch'></span>object, not matched</li>"
        f"<li>proposal, score 0<span class='ramp' style='background:linear-gradient(90deg,{ramp})'></span>1</li></ul>"
    )
    figures = (picture_figure(picture, number=number) for number, picture in enumerate(shown, start=1))
    return section("Proposals beside ground truth", key, *figures)


def picture_figure(picture: Picture, *, number: int, num_shown: int = _NUM_SHOWN) -> str:
    """Returns a JPEG with vector boxes over it, once for each panel: ground truth, then the best proposals; a caption.

    Args:
        picture: Image, objects and proposals; proposals before training have a panel in the middle.
        number: Differs from figure to figure of a page.
        num_shown: Proposals drawn at most; all of them count.
    """
    height, width = picture.image.shape[:2]
    found, name = picture.covered(), escape(picture.name)
    total = f"{len(found)} object{'' if len(found) == 1 else 's'}"
    truth = "".join(
        f"{box_rect(box, 'edge')}{box_rect(box, 'found' if is_found else 'missed')}"
        for box, is_found in zip(picture.gt_boxes_xyxy, found, strict=True)
    )
    panels = {"ground truth": truth}
    counts = [f"{int(found.sum())} of {total} matched at IoU 0.5 by {len(picture.proposals)} proposals"]
    if picture.before is not None:
        panels["general weights, no training"] = _proposal_boxes(picture.before[:num_shown])
        counts.append(f"without training {int(picture.covered(by=picture.before).sum())} by {len(picture.before)}")
    panels["fine-tuned"] = _proposal_boxes(picture.proposals[:num_shown])
    image = f"<image id='picture-{number}' width='{width}' height='{height}' href='{_data_uri(picture.image)}'/>"
    parts = []
    for label, boxes in panels.items():
        svg = f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{name}: {label}'>{image}{boxes}</svg>"
        parts.append(f"<div><p class='muted'>{label}</p>{svg}</div>")
        image = f"<use href='#picture-{number}'/>"
    caption = f"{name}: {'; '.join(counts)}; the best {min(num_shown, len(picture.proposals))} are drawn."
    return f"<figure><div class='panels'>{''.join(parts)}</div><figcaption>{caption}</figcaption></figure>"


def _proposal_boxes(best: Proposals) -> str:
    # The best proposal is drawn last, so that it lies on top; its score is a tooltip.
    return "".join(
        f"{box_rect(box, 'edge')}{box_rect(box, stroke=score_color(score), title=f'{score:.3f}')}"
        for box, score in reversed(list(zip(best.boxes, best.scores.tolist(), strict=True)))
    )


def score_color(score: float) -> str:
    """Colour of a score (0..1) as `#rrggbb`; the darkest part of the colour map would not show on pictures."""
    red, green, blue, _ = mpl.colormaps["plasma"](0.2 + 0.8 * min(1.0, max(0.0, score)), bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _data_uri(image: npt.NDArray[np.uint8]) -> str:
    height, width = image.shape[:2]
    if width > _PICTURE_WIDTH_PX:
        size = (_PICTURE_WIDTH_PX, max(1, round(height * _PICTURE_WIDTH_PX / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _PICTURE_QUALITY])
    return jpeg_uri(encoded.tobytes())


def timings(stage_ms: Mapping[str, Sequence[float]], note: str) -> str:
    """Table of the milliseconds that each stage took, by frame."""
    figures = {stage: (float(np.median(ms)), float(np.percentile(ms, 95))) for stage, ms in stage_ms.items()}
    longest = max((p95 for _, p95 in figures.values()), default=0) or 1
    rows = []
    for stage, (median, p95) in figures.items():
        bars = "".join(f"<i style='width:{100 * value / longest:.1f}%'></i>" for value in (p95, median))
        numbers = "".join(f"<td class='number'>{value:.2f}</td>" for value in (median, p95))
        bar = f"<td class='bars'><span class='bar' aria-hidden='true'>{bars}</span></td>"
        rows.append(f"<tr><th scope='row'>{escape(stage)}</th>{numbers}{bar}</tr>")
    caption = "Milliseconds per frame; dark bar: median, pale bar: 95th percentile."
    head = head_cells("stage", "median", "95 %") + "<th scope='col'>compared</th>"
    return section("Time per frame", f"<p>{escape(note)}</p>", table(head, rows, caption=caption))


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Purposes and command lines."""
    items = (f"<p>{escape(purpose)}</p><pre><code>{escape(command)}</code></pre>" for purpose, command in lines)
    return section("Next steps", *items)


def _graph_metrics(facts: DemoFacts) -> dict[str, float]:
    """Returns the graph's recall, without metrics at more proposals than it has, which would repeat a smaller one."""
    found, capacity = facts.export.recall, facts.export.proposals.num_proposals
    beyond = {f"AR@{budget}" for budget in BUDGETS if budget > capacity}
    return {name: value for name, value in (found.metrics if found else ()) if name not in beyond}


def _headline_figures(facts: DemoFacts, columns: Mapping[str, Mapping[str, float]]) -> tuple[tuple[str, str, str], ...]:
    (height, width), num_images = facts.video.hw, facts.evaluation.num_images
    run = facts.runs[GENERAL]
    seen = run.num_steps * facts.settings.data.batch_size
    recall_text = f"{columns['ONNX'].get('AR@100', math.nan):.3f}"
    before_text = f"{run.before.metrics['AR@100']:.3f}"
    speed_note = f"{width} x {height} video: decode, propose, draw and write"
    return (
        ("AR@100, no training", before_text, f"general weights, {num_images} validation images"),
        ("AR@100, fine-tuned", recall_text, "exported model, the same images"),
        ("Speed", f"{facts.video_run.summary.fps:.1f} fps", speed_note),
        ("Fine-tuning", f"{facts.settings.loop.minutes:g} min", f"{run.num_steps} steps, {seen} images"),
    )


def _recall_note(facts: DemoFacts) -> str:
    assert facts.export.parity is not None
    parity, ms = facts.export.parity.summary(), facts.evaluation.latency_ms["p50"]
    return (
        f"{facts.evaluation.num_images} validation images that the training never saw. "
        f"{parity[0].upper()}{parity[1:]}. In PyTorch an image takes {ms:.1f} ms (median)."
    )


def _val_pictures(facts: DemoFacts) -> list[Picture]:
    """Validation images with proposals of the general weights before training and of the exported model."""
    records = read_coco(facts.folder.data / "val.json", facts.folder.data / "images", verify="none").records
    chosen = records[:: max(1, len(records) // _NUM_PICTURES)][:_NUM_PICTURES]
    detector = start_detector(facts.settings)
    shown = []
    with load(facts.folder.model) as model:
        for record in chosen:
            image = read_image(record.file, record.exif)
            proposals = model(image)
            shown.append(
                Picture(
                    name=record.file.name,
                    image=image,
                    gt_boxes_xyxy=record.boxes_xyxy,
                    proposals=proposals,
                    # As many as the export returns at most, so that the counts compare.
                    before=detect(detector, image)[: facts.export.proposals.num_proposals],
                )
            )
    return shown


def _timings_note(facts: DemoFacts) -> str:
    run = facts.video_run
    share = run.num_covered / max(1, run.num_objects)
    return (
        f"{run.summary.num_frames} frames with {run.summary.backend}. The stages overlap, so frames leave the pipeline "
        f"faster than their sum. Of the {run.num_objects} objects in these frames, {run.num_covered} ({share:.0%}) are "
        "covered by a proposal at IoU 0.5."
    )


def _next_commands(folder: DemoFolder) -> tuple[tuple[str, str], ...]:
    model = shlex.quote(str(folder.model))
    return (
        ("Watch a camera through this model on a web page:", f"edgerpn run {model} 0 --http 127.0.0.1:8080"),
        ("See what the model is:", f"edgerpn inspect {model}"),
        (
            "Train on your own photographs: a folder with train.json, val.json (COCO) and images/:",
            "edgerpn train --data my-photos -o my-run --minutes 30",
        ),
        ("Measure the result:", "edgerpn eval my-run/best.pt --data my-photos"),
        (
            "Export it, and run it on a video:",
            "edgerpn export my-run/best.pt -o my-run/model.onnx\n"
            "edgerpn run my-run/model.onnx my-video.mp4 -o my-results",
        ),
    )


def versions() -> dict[str, str]:
    """Versions of the packages, and the machine."""
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
