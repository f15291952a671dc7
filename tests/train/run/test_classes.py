"""Training with classes: it learns them, names them in the checkpoint, resumes exactly, and is measured."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgerpn import settings
from edgerpn.errors import CheckpointError, ConfigError
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import read_coco
from edgerpn.train.data.loader import TrainLoader
from edgerpn.train.evaluation import evaluate
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.folder import RunFolder, read_log
from edgerpn.train.run.loop import TrainResult, run_training
from edgerpn.train.run.ranks import SINGLE_PROCESS
from edgerpn.train.run.setup import RunRequest, set_up
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import take_step

COLORS = {"unused": (0, 0, 0), "blue thing": (250, 60, 40), "red thing": (40, 60, 250)}
SIDE = 96
CLASSIFY = ('model.classes=["*"]', "model.region_channels=32", "loop.start=random")
SHORT = (*CLASSIFY, "loop.epochs=3", "loop.evaluations=2")
MakeSettings = Callable[..., TrainSettings]


def write_split(folder: Path, split: str, count: int, first_id: int) -> None:
    """Grey noise with a blue and a red rectangle, or only one of them, in each image."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first_id, first_id + count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(60, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        for category in ((1, 2), (1,), (2,))[number % 3]:
            w, h = (int(v) for v in rng.integers(20, 44, 2))
            x, y = int(rng.integers(0, SIDE // 2 - w // 2)) + (category - 1) * 40, int(rng.integers(0, SIDE - h))
            cv2.rectangle(pixels, (x, y), (x + w - 1, y + h - 1), list(COLORS.values())[category], -1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": [x, y, w, h]}
            )
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLORS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colors")
    (folder / "images").mkdir()
    write_split(folder, "train", 16, 100)
    write_split(folder, "val", 8, 500)
    return folder


@pytest.fixture(scope="module")
def short_run(colors: Path, tmp_path_factory: pytest.TempPathFactory, tiny_texts: tuple[str, ...]) -> TrainResult:
    """A run of twelve steps, to read and to compare with."""
    out = tmp_path_factory.mktemp("short") / "run"
    return run_training(settings.load(TrainSettings, overrides=(*tiny_texts, *SHORT)), data=colors, output=out)


def make_run(data: Path, output: Path, settings: TrainSettings) -> TrainingRun:
    """Makes a run before its first step."""
    request = RunRequest(
        settings=settings, data=data, folder=RunFolder(output), resume=False, backbone_weights=None, log=lambda _: None
    )
    return set_up(request, SINGLE_PROCESS, choose_compute(settings.loop))


def test_the_checkpoint_has_the_names_of_the_classes_with_objects(short_run: TrainResult) -> None:
    best = load_checkpoint(short_run.best)
    assert best.settings.model.classes == ("blue thing", "red thing")
    assert best.weights["region_head.logits.weight"].shape == (3, 32)


def test_losses_and_precision_are_in_the_log(short_run: TrainResult) -> None:
    rows = read_log(short_run.best.parent / "log.csv")
    steps, evaluations = ([row for row in rows if name in row] for name in ("loss", "AP"))
    assert len(steps) == 12
    assert all(row["region_class"] > 0 and row["region_box"] >= 0 for row in steps)
    first = steps[0]
    weighted = first["objectness"] + 3 * first["box"] + 2 * first["region_class"] + 2 * first["region_box"]
    assert first["loss"] == pytest.approx(weighted, rel=1e-4)
    assert len(evaluations) == 2
    assert {"AR@100", "AP50"} < evaluations[0].keys()
    assert {"AP", "AP50", "AR@100"} < short_run.metrics.keys()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("num_objects", [0, 1, 8])
def test_the_class_loss_is_a_mean_however_few_objects_there_are(
    colors: Path, tmp_path: Path, tiny_settings: MakeSettings, num_objects: int, passes: int
) -> None:
    texts = (*CLASSIFY, "data.batch_size=8", f"loop.accumulate={passes}", "data.augment={mosaic_probability=0.0}")
    run = make_run(colors, tmp_path / "run", tiny_settings(*texts))
    with run.loader:
        batches = [batch.to(torch.device("cpu")) for batch in next(run.loader.steps(0))]
        left = num_objects
        for batch in batches:
            for mask in batch.gt_mask:
                mask[1 if left > 0 else 0 :] = False  # one object in each of the first images
                left -= 1
        figures = take_step(run, batches).figures()
    # Of three equally probable classes. With one object the images without any count up to once more.
    assert 0.7 * math.log(3) < figures.region_class < 2 * math.log(3)


@pytest.mark.slow
def test_a_training_learns_to_tell_classes_apart(colors: Path, tmp_path: Path, tiny_settings: MakeSettings) -> None:
    texts = (
        *CLASSIFY,
        "loop.epochs=40",
        "loop.evaluations=2",
        "optimizer.learning_rate=5e-3",
        "optimizer.ema_decay=0.9",
        "optimizer.ema_warmup_steps=20",
    )
    result = run_training(tiny_settings(*texts), data=colors, output=tmp_path / "run")
    assert result.metrics["AP50"] > 0.6
    found = evaluate(result.best, colors)
    assert found.metrics["AP50"] == pytest.approx(result.metrics["AP50"], abs=1e-3)
    assert list(found.classes) == ["blue thing", "red thing"]
    assert min(row["AP50"] for row in found.classes.values()) > 0.5


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(
    colors: Path, tmp_path: Path, tiny_settings: MakeSettings, short_run: TrainResult
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("step 6,"):
            os.kill(os.getpid(), signal.SIGINT)

    start = functools.partial(run_training, tiny_settings(*SHORT), data=colors, output=tmp_path / "run")
    assert start(log=interrupt).interrupted
    resumed = start(resume=True)
    assert resumed.metrics == short_run.metrics
    whole, parts = (load_checkpoint(result.last).weights for result in (short_run, resumed))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_run_cannot_continue_with_other_classes(
    colors: Path, tiny_settings: MakeSettings, short_run: TrainResult
) -> None:
    other = tiny_settings(*SHORT, 'model.classes=["red thing", "blue thing"]')
    with pytest.raises(CheckpointError, match="learns blue thing, red thing and cannot continue with red thing, blue"):
        run_training(other, data=colors, output=short_run.last.parent, resume=True)


def test_classes_without_an_object_are_refused(colors: Path, tmp_path: Path, tiny_settings: MakeSettings) -> None:
    texts = 'model.classes=["red thing", "unused"]'
    with pytest.raises(ConfigError, match="has no object of 'unused' to learn from; it has 'blue thing', 'red thing'"):
        run_training(tiny_settings(texts), data=colors, output=tmp_path / "run")


def test_a_set_without_classes_is_refused(colors: Path, tmp_path: Path, tiny_settings: MakeSettings) -> None:
    shutil.copytree(colors, tmp_path / "data")
    content = json.loads((colors / "train.json").read_text())
    (tmp_path / "data" / "train.json").write_text(json.dumps({**content, "categories": []}))
    with pytest.raises(ConfigError, match=r"none of the \d+ objects of .*train.json has a class; expected named categ"):
        run_training(tiny_settings(*CLASSIFY), data=tmp_path / "data", output=tmp_path / "run")


def test_a_training_counts_the_objects_of_several_classes_and_of_none(
    colors: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    shutil.copytree(colors, tmp_path / "data")
    content = json.loads((colors / "train.json").read_text())
    first = content["annotations"][0]
    content["annotations"].append({**first, "id": 1000, "category_id": 3 - first["category_id"]})
    del content["annotations"][1]["category_id"]
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    lines: list[str] = []
    # Refused after the data are read.
    with pytest.raises(ConfigError, match="has no object of 'unused'"):
        run_training(
            tiny_settings('model.classes=["unused"]'), data=tmp_path / "data", output=tmp_path / "run", log=lines.append
        )
    assert any(line.startswith("train.json: box that equals one of another class: 1, kept once for") for line in lines)
    assert any(line.startswith("train.json: box without a class: 1, kept as an object") for line in lines)


def test_a_start_from_weights_of_other_classes_begins_with_random_class_weights(
    colors: Path, tmp_path: Path, tiny_settings: MakeSettings, short_run: TrainResult
) -> None:
    lines: list[str] = []
    texts = (*CLASSIFY[:2], f"loop.start={short_run.best}", "loop.epochs=1", "data.holdout_classes=['red thing']")
    result = run_training(tiny_settings(*texts), data=colors, output=tmp_path / "run", log=lines.append)
    assert load_checkpoint(result.best).settings.model.classes == ("blue thing",)
    start = next(line for line in lines if line.startswith("start:"))
    assert "do not fit: region_head.logits.weight, region_head.logits.bias (" in start


def test_labels_stay_with_their_boxes_in_augmented_views(colors: Path, tiny_settings: MakeSettings) -> None:
    dataset = read_coco(colors / "train.json", colors / "images").with_classes(("red thing", "blue thing"))
    config = tiny_settings("data.augment={color_probability=0.0, mosaic_probability=0.8}").data
    seen = 0
    with TrainLoader(dataset.records, config, seed=0) as loader:
        for batch in loader.epoch(0):
            for image, place in batch.gt_mask.nonzero().tolist():
                x1, y1, x2, y2 = batch.gt_boxes[image, place].tolist()
                blue, _, red = batch.images[image, int((y1 + y2) / 2), int((x1 + x2) / 2)].tolist()
                if abs(red - blue) < 100:
                    continue  # the other rectangle covers the middle
                seen += 1
                assert int(batch.gt_labels[image, place]) == (0 if red > blue else 1)
    assert seen > 15


@pytest.mark.parametrize("name", ["", "two\nlines"])
def test_a_class_whose_name_no_file_can_hold_is_refused(
    colors: Path, tmp_path: Path, tiny_settings: MakeSettings, name: str
) -> None:
    content = json.loads((colors / "train.json").read_text())
    content["categories"][1]["name"] = name
    shutil.copytree(colors, tmp_path / "data")
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"has objects of {re.escape(repr(name))}; expected names in one line"):
        run_training(tiny_settings(*CLASSIFY), data=tmp_path / "data", output=tmp_path / "run")
