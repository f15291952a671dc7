"""What is measured on a domain: a checkpoint as it is, methods that are not ours, and trainings from some weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.domains.sets import ALLOWED, Domain, read_measured
from benchmarks.general.nanodet import NanoDet
from benchmarks.recall.__main__ import CONTRIB, run_side
from edgerpn.progress import track
from edgerpn.train.checkpoint import load_model
from edgerpn.train.data.coco import Dataset, read_image
from edgerpn.train.evaluation import make_detector
from edgerpn.train.network.detector import detect
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.measurement import Detect
from edgerpn.train.training import resolve_settings

NANODET_IOU = {"nanodet": 0.7, "nanodet-nms50": 0.5}
"""IoU of its NMS: a low one is better for few proposals, a high one for many."""
PEERS = (*NANODET_IOU, "prior", "own-prior", *CONTRIB)
BUDGETS = ("AR@10", "AR@100", "AR@300", "AR@900", "AR@1000")
NUM_PROPOSALS, SIZE_HW = 1000, (640, 640)
"""As in the evaluations of a training."""
PUBLISHED_BUDGET = 900
"""Proposals of an image in the published figures, in place of our 1000."""

Results = list[dict[str, Any]]
"""COCO results, those of an image best first."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The settings of the command line."""

    images: int
    """Images that each training sees, about."""
    threads: int
    """Threads of PyTorch; 0: PyTorch decides."""
    settings: tuple[str, ...]
    """Settings of the trainings, a.b=value."""
    nanodet: Path | None
    """Folder of NanoDet-g."""
    contrib_python: str | None
    """Interpreter with OpenCV's contrib modules; None: this one."""


def measure_checkpoint(file: str, domain: Domain, _: Path) -> Row:
    """Measures a checkpoint as it is on a domain.

    Raises:
        CheckpointError: It cannot be read.
        DataError: The images cannot be used.
    """
    return measure_untrained(open_checkpoint(Path(file)), domain)


def measure_peer(method: str, domain: Domain, plan: Plan, work: Path) -> Row:
    """Measures a method that is not ours on a domain.

    Raises:
        DataError: The images cannot be used.
        subprocess.CalledProcessError: The method failed; its messages are on stderr.
    """
    if method in NANODET_IOU and plan.nanodet is not None:
        return measure_untrained(partial(NanoDet(plan.nanodet).propose, nms_iou=NANODET_IOU[method]), domain)
    python = (plan.contrib_python if method in CONTRIB else None) or sys.executable
    results = work / f"{method}.json"
    if method == "own-prior":
        run_side(python, "prior", domain.parts, results)
        return {"part": recall(read_measured(domain.parts), json.loads(results.read_text()))}
    run_side(python, method, domain.whole, results)
    return _figures(domain, read_measured(domain.whole), json.loads(results.read_text()))


def measure_untrained(detect_frame: Detect, domain: Domain) -> Row:
    """Measures a detector on all images of a domain, and on those that trainings are measured on.

    Raises:
        DataError: The images cannot be used.
    """
    dataset = read_measured(domain.whole)
    return _figures(domain, dataset, propose(detect_frame, dataset, domain.name))


def measure_tuned(start: str, domain: Domain, seed: int, count: int | None, plan: Plan, work: Path) -> Row:
    """Trains from `start` on `count` images of a domain (None: all) and measures the last weights on the others.

    The training sees `plan.images` rounded to whole epochs; an epoch leaves out what does not fill its last batch.

    Raises:
        subprocess.CalledProcessError: The training failed; its messages are on stderr.
    """
    folder, available = domain.subset(count, seed)
    batch = min(resolve_settings(overrides=plan.settings).data.batch_size, available)
    batches = available // batch
    epochs = max(1, round(plan.images / (batches * batch)))
    run = work / "run"
    command = [sys.executable, "-m", "edgerpn", "train", "--data", str(folder), "--out", str(run), "--from", start]
    command += ["--epochs", str(epochs), "--follow-links", *(word for name in ALLOWED for word in ("--allow", name))]
    # One evaluation, at the end: the measured images choose nothing.
    fixed = (f"loop.seed={seed}", f"loop.threads={plan.threads}", "loop.evaluations=1")
    command += [word for text in (*fixed, *plan.settings) for word in ("--set", text)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    dataset = read_measured(folder)
    results = propose(open_checkpoint(run / "last.pt"), dataset, f"{domain.name} from {start}")
    return {"images_seen": epochs * batches * batch, "images_marked": available, "part": recall(dataset, results)}


def open_checkpoint(file: Path) -> Detect:
    """Returns the detector of a checkpoint, as evaluations of a training make it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    model, content = load_model(file)
    return partial(detect, make_detector(model, content, num_proposals=NUM_PROPOSALS, size_hw=SIZE_HW))


def propose(detect_frame: Detect, dataset: Dataset, label: str) -> Results:
    """Runs a detector on all images."""
    results: Results = []
    for record in track(dataset.records, label, unit="image"):
        results += detect_frame(read_image(record.file, record.exif)).to_coco(record.image_id)
    return results


def _figures(domain: Domain, dataset: Dataset, results: Results) -> Row:
    part = read_measured(domain.parts)
    ids = {record.image_id for record in part.records}
    if ids == {record.image_id for record in dataset.records}:
        figures = recall(dataset, results)
        return {"all": figures, "part": figures}
    return {"all": recall(dataset, results), "part": recall(part, [row for row in results if row["image_id"] in ids])}


def recall(dataset: Dataset, results: Results) -> dict[str, float]:
    """Returns the average recall at each of BUDGETS, 0..1; `results` are of images of the data set."""
    truth = dataset.coco_ground_truth()
    metrics = average_recall(truth, results)
    metrics[f"AR@{PUBLISHED_BUDGET}"] = average_recall(truth, [*_best(results, PUBLISHED_BUDGET)])["AR@1000"]
    return {name: metrics[name] for name in BUDGETS}


def _best(results: Results, count: int) -> Iterable[dict[str, Any]]:
    """Yields the first `count` results of every image."""
    seen: Counter[Any] = Counter()
    for row in results:
        seen[row["image_id"]] += 1
        if seen[row["image_id"]] <= count:
            yield row
