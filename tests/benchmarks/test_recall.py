"""`python -m benchmarks.recall` on a set so small that a training takes seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.recall import __main__ as recall
from benchmarks.recall import side


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures with one white object, always in the same place."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", 8), ("val", 2)):
        images, annotations = [], []
        for number in range(count):
            picture = np.full((64, 64, 3), 90 + number, np.uint8)
            picture[16:48, 8:40] = 255
            name = f"{split}-{number}.png"
            assert cv2.imwrite(str(folder / "images" / name), picture)
            images.append({"id": number, "file_name": name, "width": 64, "height": 64})
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 16, 32, 32]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(data: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls the command with arguments; returns its exit status."""
    sets = [word for text in tiny for word in ("--set", text)]

    def call(*words: str) -> int:
        fixed = ["--data", str(data), "--out", str(tmp_path / "recall.json"), "--size", "64", "--minutes", "0.03"]
        monkeypatch.setattr(sys, "argv", ["recall", *fixed, *sets, *words])
        return recall.main()

    return call


@pytest.mark.slow
def test_rows_are_measured_once_and_make_a_table(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recall.json"
    assert run("--methods", "prior") == 0
    (prior,) = json.loads(out.read_text())["rows"]  # it has no randomness, so one seed suffices
    assert prior["AR@10"] == 1.0
    assert capsys.readouterr().out.startswith("prior, squares, seed 0: AR@10 1.000")
    assert run("--methods", "prior,edge", "--seeds", "0") == 0
    first, edge = json.loads(out.read_text())["rows"]
    assert first == prior
    assert "prior" not in capsys.readouterr().out
    assert (edge["method"], edge["data"], edge["size_hw"]) == ("edge", "squares", [64, 64])
    assert 0 <= edge["AR@10"] <= edge["AR@1000"] <= 1
    assert edge["images_seen"] > 0
    assert 0 < edge["gflops"] < 0.1
    table = out.with_suffix(".md").read_text()
    assert "| prior | 1 | 1.000 | 1.000 | 1.000 | 1.000 | none; " in table
    assert f"| edge | 1 | {edge['AR@10']:.3f} | {edge['AR@100']:.3f} |" in table
    with pytest.raises(SystemExit):
        run("--methods", "prior", "--minutes", "5")
    assert "was measured with another minutes" in capsys.readouterr().err


def test_a_peer_trains_in_bf16_and_returns_float32_and_is_measured_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})  # PyTorch computes it on any CPU
    torch.manual_seed(0)
    layer, views = torch.nn.Linear(16, 4), torch.randn(3, 16)
    exact = layer(views)
    side.train_in_bf16(layer, torch)
    trained = layer.train()(views)
    assert trained.dtype == torch.float32
    assert torch.equal(trained, trained.bfloat16().float())
    assert not torch.equal(trained, exact)
    assert torch.equal(layer.eval()(views), exact)


def test_nested_outputs_of_a_peer_become_float32() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    found = side.to_float32({"levels": [half, half]})
    assert [level.dtype for level in found["levels"]] == [torch.float32] * 2
