"""`python -m benchmarks.general.average`: the mean of the weights of several checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.general import average
from edgerpn import settings
from edgerpn.train.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.model import Rpn


def write(path: Path, seed: int, *overrides: str) -> Path:
    resolved = settings.load(TrainSettings, overrides=("model.stage_channels=[4, 8, 8, 8, 8, 8]", *overrides))
    torch.manual_seed(seed)
    save_checkpoint(
        Checkpoint(settings=resolved, weights=Rpn(resolved.model).state_dict(), step=seed, metrics={"AR@100": 0.5}),
        path,
    )
    return path


def test_each_weight_is_the_mean(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    assert average.main([*map(str, files), "-o", str(tmp_path / "mean.pt")]) == 0
    first, second, mean = (load_checkpoint(path) for path in (*files, tmp_path / "mean.pt"))
    assert mean.weights.keys() == first.weights.keys()
    name = "head.window.conv.weight"
    torch.testing.assert_close(mean.weights[name], (first.weights[name] + second.weights[name]) / 2)
    assert (mean.step, mean.metrics, mean.training) == (2, {}, None)
    load_model(tmp_path / "mean.pt")


def test_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, last = write(tmp_path / "a.pt", 1, "model.head_channels=8"), write(tmp_path / "b.pt", 2)
    assert average.main([str(other), str(last), "-o", str(tmp_path / "mean.pt")]) == 1
    assert capsys.readouterr().err == f"error: {other}: another network (settings `model`) than that of {last}\n"
    assert not (tmp_path / "mean.pt").exists()


def test_the_mean_keeps_another_proposal_stage(tmp_path: Path) -> None:
    file, out = write(tmp_path / "a.pt", 1), tmp_path / "mean.pt"
    assert average.main([str(file), "-o", str(out), "--set", "proposals.soft_nms_iou=0.3"]) == 0
    settings_before, settings_after = load_checkpoint(file).settings, load_checkpoint(out).settings
    assert settings_after.proposals == dataclasses.replace(settings_before.proposals, soft_nms_iou=0.3)
    assert dataclasses.replace(settings_after, proposals=settings_before.proposals) == settings_before


@pytest.mark.parametrize("text", ["model.head_channels=8", "proposals.soft_nms_iou=2", "proposals.soft=1"])
def test_a_setting_that_the_mean_cannot_keep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = write(tmp_path / "a.pt", 1)
    assert average.main([str(file), "-o", str(tmp_path / "mean.pt"), "--set", text]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text.partition("=")[0].rpartition(".")[2] in error
    assert not (tmp_path / "mean.pt").exists()
