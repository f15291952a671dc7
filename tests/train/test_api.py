"""The Python API: `edgerpn.train.train` and `edgerpn.train.evaluate`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgerpn.train
from edgerpn.errors import ConfigError
from edgerpn.train import TrainSettings, evaluate, load_settings, train
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.splits import find_split
from edgerpn.train.training import resolve_settings


def test_a_program_trains_and_evaluates(
    data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    lines: list[str] = []
    result = train(data_folder, tmp_path / "run", epochs=1, settings=tiny_settings(), log=lines.append)
    assert load_checkpoint(result.last).step == 4
    assert any(line.startswith("step 4,") for line in lines)
    evaluation = evaluate(result.best, data_folder)
    assert evaluation.num_images == 12
    assert evaluation.metrics["AR@1000"] == pytest.approx(result.metrics["AR@1000"], abs=1e-6)
    assert evaluation.metrics == pytest.approx(evaluate(result.best, data_folder / "val.json").metrics)
    assert evaluate(result.best, data_folder, size_hw=(64, 64), num_proposals=10, limit=3).num_images == 3
    with pytest.raises(ConfigError, match="both sides must be multiples of 32"):
        evaluate(result.best, data_folder, size_hw=(40, 64))

    # A resumed run keeps its own settings, apart from those that change.
    again = train(data_folder, tmp_path / "run", epochs=2, resume=True, settings={"loop.log_every": 2})
    last = load_checkpoint(again.last)
    assert (last.step, last.settings.loop.log_every) == (8, 2)
    assert last.settings.model == tiny_settings().model


def test_a_yolo_set_trains_and_evaluates_as_the_same_set_in_coco(
    data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    for split in ("train", "val"):
        content = json.loads((data_folder / f"{split}.json").read_text())
        for folder in ("images", "labels"):
            (tmp_path / "yolo" / folder / split).mkdir(parents=True)
        for image in content["images"]:
            boxes = [box["bbox"] for box in content["annotations"] if box["image_id"] == image["id"]]
            lines = [f"0 {(x + w / 2) / 96!r} {(y + h / 2) / 96!r} {w / 96!r} {h / 96!r}" for x, y, w, h in boxes]
            stem = Path(image["file_name"]).stem
            (tmp_path / "yolo" / "labels" / split / f"{stem}.txt").write_text("\n".join(lines))
            shutil.copy(data_folder / "images" / image["file_name"], tmp_path / "yolo" / "images" / split)
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [rectangle]\n")
    settings = tiny_settings("loop.epochs=1")
    first = train(data_folder, tmp_path / "first", settings=settings)
    second = train(tmp_path / "yolo", tmp_path / "second", settings=settings)
    assert first.metrics == second.metrics
    assert evaluate(first.best, data_folder).metrics == evaluate(first.best, tmp_path / "yolo").metrics
    assert load_checkpoint(second.last).data_folder == str(tmp_path / "yolo")


def test_a_resumed_run_keeps_its_split(
    data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    lines: list[str] = []
    train(data_folder, tmp_path / "run", settings=tiny_settings("loop.epochs=1", "data.split=0.3@2"), log=lines.append)
    train(data_folder, tmp_path / "run", epochs=2, resume=True, log=lines.append)
    found = [line for line in lines if "held out of train.json" in line]
    assert len(found) == 2
    assert found[0] == found[1]
    assert "val: 5 of 16 images" in found[0]
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 4  # 11 images in batches of 4


def test_an_evaluation_names_images_that_another_split_held_out(
    data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    settings = tiny_settings("loop.epochs=1", "data.split=0.3@2", "data.classes=['rectangle']")
    best = train(data_folder, tmp_path / "run", settings=settings).best
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(data_folder, elsewhere)

    def told(folder: Path, **choice: Any) -> bool:
        lines: list[str] = []
        evaluate(best, find_split(folder, "val", DataChoice(**choice)), limit=1, log=lines.append)
        return any(line.startswith("train.json (val): training may have seen some of these images") for line in lines)

    assert told(data_folder, split="0.2")
    assert told(data_folder, split="0.3@3")
    assert not told(data_folder, split="0.3@2")
    assert not told(data_folder, split="0.3@2", classes=("rectangle",))
    assert not told(data_folder)  # the set's own validation split
    assert not told(elsewhere, split="0.2")  # nothing is known about another set


def test_single_settings_take_precedence_over_arguments_and_these_over_the_preset() -> None:
    resolved = resolve_settings(preset="paper", size_hw=(64, 128), epochs=3, overrides=["loop.epochs=4"])
    assert resolved.data.input_hw == (64, 128)
    assert resolved.loop.epochs == 4
    assert resolved.model.backbone == "vgg16"
    turned = resolve_settings(data_exif="apply", follow_links=True)
    assert (turned.data.exif, turned.data.follow_links, turned.data.choice.images.reading) == ("apply", True, "apply")
    base = resolve_settings(base=load_settings(overrides=("loop.seed=5",)), holdout_classes=("cat", "polar bear"))
    assert (base.loop.seed, base.data.holdout_classes) == (5, ("cat", "polar bear"))


def test_a_preset_beside_complete_settings_is_refused(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--preset: a resumed run keeps its own settings"):
        train(data_folder, tmp_path / "run", preset="paper", settings=load_settings())
    with pytest.raises(ConfigError, match=r"optimizer\.learing_rate: unknown setting"):
        train(data_folder, tmp_path / "run", settings={"optimizer.learing_rate": 1e-3})
    assert not (tmp_path / "run").exists()


def test_two_lengths_are_refused_as_on_the_command_line(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minutes=0\.001, epochs=5: a run has one length; name one of the two"):
        train(data_folder, tmp_path / "run", minutes=0.001, epochs=5)
    assert resolve_settings(minutes=0, epochs=5).loop.epochs == 5


def test_the_package_names_what_it_offers_and_imports_it_at_first_use() -> None:
    assert edgerpn.train.__all__ == sorted(edgerpn.train.__all__)
    assert all(hasattr(edgerpn.train, name) for name in edgerpn.train.__all__)
    code = "import sys, edgerpn.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
