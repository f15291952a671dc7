"""`edgerpn train`: settings, presets and errors as the command line shows them, and one whole run."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgerpn import settings
from edgerpn.__main__ import main
from edgerpn.errors import ConfigError
from edgerpn.train.cli import log_line
from edgerpn.train.config import LoopConfig, TrainSettings, load_settings
from edgerpn.train.run.device import choose_compute

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", "--print-config", *arguments]) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    assert main(["train", *arguments]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    return captured.err


def test_the_edge_preset_is_the_defaults() -> None:
    assert load_settings(preset="edge") == TrainSettings() == load_settings()


def test_the_paper_preset_has_the_published_numbers() -> None:
    paper = load_settings(preset="paper")
    assert paper.model.backbone == "vgg16"
    assert paper.model.objectness == "softmax"
    assert (paper.model.head_channels, paper.model.neck_channels) == (512, 0)
    assert paper.model.anchors.strides_px == (16,)
    assert paper.model.anchors.sizes_px == ((128.0, 256.0, 512.0),)
    assert paper.model.anchors.ratios_hw == (0.5, 1.0, 2.0)
    assert (paper.assign.kind, paper.assign.positive_iou, paper.assign.negative_iou) == ("max_iou", 0.7, 0.3)
    assert paper.assign.low_quality_matches
    assert paper.assign.boundary_px == 0.0
    assert (paper.assign.samples_per_image, paper.assign.positive_fraction) == (256, 0.5)
    assert (paper.loss.objectness, paper.loss.box) == ("bce", "smooth_l1")
    assert paper.loss.smooth_l1_beta == pytest.approx(1 / 9)
    assert (paper.proposals.nms_iou, paper.proposals.pre_nms, paper.proposals.num_proposals) == (0.7, 6000, 300)
    assert paper.proposals.soft_nms_iou == 1
    assert (paper.optimizer.kind, paper.optimizer.learning_rate, paper.optimizer.momentum) == ("sgd", 1e-3, 0.9)
    assert paper.optimizer.weight_decay == 5e-4


@pytest.mark.parametrize("preset", ["edge", "paper"])
def test_the_printed_settings_are_a_file_that_gives_the_same_settings(
    preset: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = printed_config(capsys, "--preset", preset)
    file = tmp_path / "settings.toml"
    file.write_text(text)
    assert settings.load(TrainSettings, files=[file]) == load_settings(preset=preset)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) > 50


def test_flags_override_the_file_and_set_overrides_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[loop]\nepochs = 7\nseed = 5\n[data]\nbatch_size = 2\n")
    text = printed_config(
        capsys, "--config", str(file), "--epochs", "9", "--size", "64x128", "--set", "data.batch_size=3"
    )
    shown = tomllib.loads(text)
    assert (shown["loop"]["epochs"], shown["loop"]["seed"]) == (9, 5)
    assert shown["data"]["batch_size"] == 3
    assert shown["data"]["input_hw"] == [64, 128]
    assert tomllib.loads(printed_config(capsys, "--minutes", "2.5"))["loop"]["minutes"] == 2.5


def test_a_misspelt_setting_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "--print-config", "--set", "optimizer.learing_rate=1e-3", status=2)
    assert "optimizer.learing_rate: unknown setting; did you mean 'learning_rate'?" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "loop.epochs=many"], "loop.epochs: expected a whole number, got 'many'"),
        *(
            (["--set", f"loop.device={name}"], f"loop.device: expected auto, cpu, cuda or cuda:N, got '{name}'")
            for name in ("tpu7", "meta", "cuda:255")
        ),
        (["--set", "proposals.nms_iou=1.5"], "nms_iou: expected more than 0 and at most 1, got 1.5"),
        (["--set", "model.backbone=resnet19"], "model.backbone: expected one of edge, resnet18"),
        (["--preset", "papr"], "--preset: expected one of edge, paper, got 'papr'"),
        (["--data", "somewhere"], "--output: required"),
        ([], "--data and --output: required"),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot read settings"),
    ],
)
def test_wrong_settings_are_named(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert expected in error_of(capsys, *arguments, status=1 if "--config" in arguments else 2)


def test_wrong_usage_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--epochs", "1", "--minutes", "1"], ["--size", "64x"], ["--epochs", "x"]):
        with pytest.raises(SystemExit) as exit_info:
            main(["train", *arguments])
        assert exit_info.value.code == 2
    assert "usage: edgerpn train" in capsys.readouterr().err


def test_a_line_of_the_log_is_printed_at_once_and_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (tmp_path / "log.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        log_line("step 1")
        assert (tmp_path / "log.txt").read_text() == "step 1\n"
        monkeypatch.setattr(sys, "stdout", FullDisk())
        log_line("step 2")


def test_a_run_prints_its_table_and_its_best_checkpoint(
    data_folder: Path, tmp_path: Path, tiny_texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    sets = [word for text in tiny_texts for word in ("--set", text)]
    folders = ["--data", str(data_folder), "--out", str(out)]
    assert main(["train", *folders, *sets]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{data_folder}: COCO (train.json, val.json); train: train.json, val: val.json"
    assert lines[1].startswith("start: random weights; the general ones do not fit: ")
    assert lines[2].endswith("parameters, 16 images, cpu, fp32")
    assert lines[-1] == f"best checkpoint: {out / 'best.pt'}"
    assert any(line.split()[0] == "AR@100" for line in lines)

    assert "already holds a run" in error_of(capsys, *folders, *sets)
    assert "--preset: a resumed run keeps its own settings" in error_of(
        capsys, *folders, "--resume", "--preset", "edge", status=2
    )
    assert main(["train", *folders, "--resume", "--epochs", "3"]) == 0
    assert "resuming at step 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ({"device": "cuda:99"}, "loop.device: 'cuda:99' does not exist"),
        ({"device": "cpu", "amp": "fp16"}, "loop.amp: fp16 needs a CUDA device"),
    ],
)
def test_a_device_that_is_not_there_is_named(loop: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        choose_compute(LoopConfig(**loop))


def test_a_run_of_an_older_version_on_cpu_0_is_on_the_cpu() -> None:
    assert choose_compute(LoopConfig(device="cpu:0")).device.type == "cpu"


def test_precision_is_as_asked_and_shown() -> None:
    assert str(choose_compute(LoopConfig(device="cpu", amp="off"))) == "cpu, fp32"
    half = choose_compute(LoopConfig(device="cpu", amp="bf16"))
    assert str(half) == "cpu, bf16"
    with half.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"minutes": -1.0}, {"evaluations": 0}, {"log_every": 0}])
def test_lengths_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        LoopConfig(**changes)


def crowds_only(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "iscrowd": 1} for row in rows]


def fractions_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "bbox": [value / 1000 for value in row["bbox"]]} for row in rows]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "val.json",
            lambda rows: [],
            "val.json: no objects to measure recall on: its 12 images have 0 regions",
        ),
        ("val.json", crowds_only, r"val.json: no objects to measure recall on: its 12 images have \d+ regions of many"),
        ("train.json", lambda rows: [], "train.json: no objects to learn from: its 16 images have 0 regions of many"),
        ("train.json", fractions_of, r"train.json: (\d+) of \1 boxes lie within 0..1: .*--allow units"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_refused_before_the_first_step(
    name: str, change: Any, message: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("train.json", "val.json"):
        content = json.loads((data_folder / file).read_text())
        if file == name:
            content["annotations"] = change(content["annotations"])
        (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(data_folder / "images")
    error = error_of(capsys, "--data", str(tmp_path), "-o", str(tmp_path / "run"), "--size", "64x128")
    assert re.search(message, error)
    assert not (tmp_path / "run" / "log.csv").exists()


def test_objects_that_no_view_shows_are_refused_unless_accepted(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--set", "data.augment.min_box_px=900", "--set", "data.workers=0"]
    arguments = ["--data", str(data_folder), "-o", str(tmp_path / "run"), "--size", "64x128", *tiny]
    assert "are too small in every view of the training and would be dropped" in error_of(capsys, *arguments)
    assert main(["train", *arguments, "--allow", "unseen", "--print-config"]) == 0
    assert 'allow = ["unseen"]' in capsys.readouterr().out
