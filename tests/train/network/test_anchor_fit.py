"""Fitted anchors: their recall equals that of the whole grid, and they fit better than the defaults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgerpn.__main__ import main
from edgerpn.train.config import load_settings
from edgerpn.train.network.anchor_fit import AnchorLayout, Array, fit_anchors, measure_anchors, similar_layouts
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.boxes import pairwise_iou

HW = (128, 192)


def random_boxes(count: int, seed: int) -> Array:
    """Boxes inside of the input, also at its edges."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(6), np.log(120), (count, 2)))
    corners = rng.uniform(0, np.maximum((HW[1], HW[0]) - sides, 0.1))
    return np.concatenate((corners, np.minimum(corners + sides, (HW[1], HW[0]))), axis=1)


@pytest.mark.parametrize(
    "config",
    [
        AnchorConfig(),
        AnchorConfig(strides_px=(16,), sizes_px=((20.0, 60.0),), ratios_hw=(0.5, 1.0, 2.0)),
        AnchorConfig(strides_px=(8, 64), sizes_px=((12.0,), (90.0,)), center_offset=0.0),
    ],
)
def test_recall_is_that_of_all_anchors_of_the_grid(config: AnchorConfig) -> None:
    boxes = random_boxes(300, seed=1)
    anchors = torch.cat(grid_anchors(config, HW)).double()
    best = pairwise_iou(torch.from_numpy(boxes)[None], anchors[None])[0].amax(dim=1).numpy()
    found = measure_anchors(config, boxes, HW)
    assert found.num_anchors == len(anchors)
    assert found.at_50 == pytest.approx((best >= 0.5).mean(), abs=1e-9)
    assert found.at_70 == pytest.approx((best >= 0.7).mean(), abs=1e-9)
    thresholds = np.arange(0.5, 1.0, 0.05)
    assert found.average == pytest.approx(np.mean([(best >= limit).mean() for limit in thresholds]), abs=1e-9)


def test_an_overlap_of_exactly_a_threshold_reaches_it() -> None:
    # An anchor of 20 x 20 in the middle of a cell, and boxes around the same middle.
    config = AnchorConfig(strides_px=(32,), sizes_px=((20.0,),))
    halves = np.array([[6, 11, 26, 21], [6, 10.5, 26, 21.5]])  # IoU 0.5 and 0.55
    assert measure_anchors(config, halves, (32, 32)).average == pytest.approx((0.1 + 0.2) / 2)


def test_sizes_and_ratios_of_the_boxes_are_found() -> None:
    rng = np.random.default_rng(2)
    centers = rng.uniform(40, 88, (400, 2))
    shapes = np.array([[16.0, 32.0], [64.0, 32.0]])[np.arange(400) % 2]
    boxes = np.concatenate((centers - shapes / 2, centers + shapes / 2), axis=1)
    fitted = fit_anchors(AnchorLayout(strides_px=(8, 16), num_sizes=1, num_ratios=2), boxes, HW)
    assert fitted.ratios_hw == pytest.approx((0.5, 2.0), rel=0.15)
    assert [size for (size,) in fitted.sizes_px] == pytest.approx([22.6, 45.3], rel=0.15)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(layout, marks=[pytest.mark.slow] if layout.num_sizes * layout.num_ratios > 3 else [])
        for layout in similar_layouts((8, 16, 32), HW)
    ],
)
def test_fitted_anchors_reach_more_than_the_defaults_and_are_the_same_again(layout: AnchorLayout) -> None:
    boxes = random_boxes(120, seed=3)
    fitted = fit_anchors(layout, boxes, HW)
    assert fitted == fit_anchors(layout, boxes, HW)
    assert (len(fitted.sizes_px[0]), len(fitted.ratios_hw)) == (layout.num_sizes, layout.num_ratios)
    plain = AnchorConfig(
        strides_px=layout.strides_px,
        sizes_px=tuple((4.0 * stride,) * layout.num_sizes for stride in layout.strides_px),
        ratios_hw=(1.0,) * layout.num_ratios,
    )
    assert measure_anchors(fitted, boxes, HW).average > measure_anchors(plain, boxes, HW).average


def test_layouts_fit_the_size() -> None:
    assert AnchorLayout(strides_px=(8, 16, 32, 64), num_sizes=1, num_ratios=1) in similar_layouts((8, 16, 32), HW)
    assert all(layout.strides_px[-1] <= 32 for layout in similar_layouts((8, 16, 32), (96, 96)))


def test_the_command_writes_settings_that_training_takes(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "anchors.toml"
    words = ["anchors", "--data", str(data_folder), "--size", "128", "--strides", "8,16,32,64,128", "--ratios", "2"]
    assert main([*words, "-o", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    count = len(json.loads((data_folder / "train.json").read_text())["annotations"])
    assert shown[0] == f"{count} boxes of 16 images, letterboxed to 128x128"
    preset, fitted = (
        float(line.removeprefix(name).split()[0]) for line, name in ((shown[2], "preset edge"), (shown[3], "fitted"))
    )
    assert fitted > preset
    settings = load_settings(file=str(file))
    assert settings.data.input_hw == (128, 128)
    assert settings.model.anchors.strides_px == (8, 16, 32, 64, 128)
    assert settings.model.neck_extra_levels == 1
    assert settings.data.view_sides_px == (*(384,) * 7, 0)  # 320 is no multiple of 128
    assert len(settings.model.anchors.ratios_hw) == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--size", "100"], "--size 100x100: both sides must be multiples of 64"),
        (["--preset", "nonsense"], "--preset: expected one of edge, paper, got 'nonsense'"),
        (
            ["--preset", "paper", "--strides", "16,32", "--size", "64", "-o", "x.toml"],
            "a network without a pyramid ends",
        ),
    ],
)
def test_settings_that_cannot_be_fitted_are_refused(
    words: list[str], problem: str, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["anchors", "--data", str(data_folder), *words]) == 2
    assert problem in capsys.readouterr().err


def test_the_annotations_are_never_overwritten(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, beside = data_folder / "train.json", data_folder / "val.json"
    before = file.read_bytes(), beside.read_bytes()
    assert main(["anchors", "--data", str(data_folder), "--size", "128", "-o", str(file)]) == 1
    assert main(["data", "check", str(file), "--json", str(file)]) == 1
    assert main(["data", "check", str(file), "-o", str(beside)]) == 1
    assert main(["data", "check", str(data_folder), "--json", str(beside)]) == 1
    shown = capsys.readouterr().err
    assert f"--output {file}: this is an input of the command and would be overwritten" in shown
    for words in (f"--json {file}", f"--output {beside}", f"--json {beside}"):
        assert f"{words}: this is an input of the command and would be overwritten" in shown
    assert (file.read_bytes(), beside.read_bytes()) == before


@pytest.mark.parametrize("text", ["", "8,16,24", "16,8", "eight"])
def test_strides_are_powers_of_two_finest_first(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["anchors", "--data", "x", "--strides", text])
    assert "expected powers of two, finest first" in capsys.readouterr().err


def test_a_set_without_boxes_is_refused(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((data_folder / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps({**content, "annotations": []}))
    (tmp_path / "images").symlink_to(data_folder / "images")
    assert main(["anchors", "--data", str(tmp_path), "--size", "128"]) == 1
    assert "no objects to fit anchors to" in capsys.readouterr().err
