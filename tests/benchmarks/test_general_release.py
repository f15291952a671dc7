"""`python -m benchmarks.general.release` with a tiny network at tiny sizes."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.general import release
from edgerpn import files, settings
from edgerpn.errors import ExportError
from edgerpn.models import GENERAL_MODELS
from edgerpn.runtime import load
from edgerpn.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.model import Rpn

TINY = (
    "data.input_hw=[128, 192]",
    "model.anchors={strides_px=[8, 16], sizes_px=[[16.0], [32.0]]}",
    "model.stage_channels=[4, 8, 8, 8]",
    "model.stage_blocks=[0, 0, 0, 0]",
    "model.neck_channels=8",
    "model.neck_bottom_up=false",
    "model.head_channels=8",
    "proposals.nms_iou=0.7",
)
CARD = (
    "| `edge.safetensors` | {zeros} |\n| `general.onnx` | 640x640 | {zeros} |\n| `general-384x640.onnx` | {zeros} |\n"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    resolved = settings.load(TrainSettings, overrides=TINY)
    torch.manual_seed(1)
    model = Rpn(resolved.model)
    torch.nn.init.normal_(model.head.objectness.weight, std=0.4)
    torch.nn.init.normal_(model.head.deltas.weight, std=0.05)
    save_checkpoint(Checkpoint(settings=resolved, weights=model.state_dict(), step=5), tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("reef", "street", "yard"):
        picture = cv2.resize(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), (300, 200))
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "edge.md").write_text(CARD.format(zeros="0" * 64))
    return tmp_path / "edge.safetensors"


@pytest.mark.slow
def test_both_sizes_are_replaced_with_their_hashes_in_the_card(
    checkpoint: Path,
    photographs: Path,
    package: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(release, "SIZES_HW", dict(zip(GENERAL_MODELS, ((128, 192), (96, 160)), strict=True)))
    words = [str(checkpoint), "--images", str(photographs), "-o", str(package), "--weights", str(weights)]
    assert release.main(words) == 0
    expected = {f"{name}{suffix}" for name in GENERAL_MODELS for suffix in (".onnx", ".json", ".golden.npz")}
    assert {path.name for path in package.iterdir()} == expected
    shared = load_checkpoint(weights)
    assert (shared.settings.loop.start, shared.step) == ("random", 5)
    hashes = [files.sha256(file) for file in (weights, *(package / f"{name}.onnx" for name in GENERAL_MODELS))]
    assert re.findall(r"[0-9a-f]{64}", weights.with_suffix(".md").read_text()) == hashes
    for name, size_hw in release.SIZES_HW.items():
        with load(package / f"{name}.onnx", self_test=True) as model:
            assert (model.manifest.name, model.manifest.input.network_hw) == (name, size_hw)
            assert model.manifest.provenance.checkpoint_sha256 == files.sha256(weights)
    shown = re.findall(r"^(\S+): golden frames from (\w+\.png), (\w+\.png)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _, _ in shown] == list(GENERAL_MODELS)
    assert all({one, other} < {"reef.png", "street.png", "yard.png"} for _, one, other in shown)


def test_a_failure_changes_nothing(
    photographs: Path, package: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "general.onnx").write_bytes(b"the old one")
    words = [str(tmp_path / "none.pt"), "--images", str(photographs), "-o", str(package), "--weights", str(weights)]
    assert release.main(words) == 1
    assert "none.pt: no such checkpoint file" in capsys.readouterr().err
    assert sorted(path.name for path in package.iterdir()) == ["general.onnx"]
    assert not weights.exists()
    assert release.main([str(tmp_path / "none.pt"), "--images", str(package), "-o", str(package)]) == 1
    assert f"--images {package}: no photographs in it" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["manifest", "graph"])
def test_names_of_the_machine_are_refused(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "somebody"
    weights = helper.make_tensor("weights", TensorProto.UINT8, [len(str(folder))], str(folder).encode(), raw=True)
    graph = helper.make_graph([], "graph", [], [], [weights], doc_string=f"in {folder}" if where == "graph" else "")
    onnx.save(helper.make_model(graph), tmp_path / "general.onnx")
    text = f'{{"data": "{folder}"}}' if where == "manifest" else "{}"
    (tmp_path / "general.json").write_text(text)
    right, wrong = tmp_path / "general.onnx", tmp_path / "general.json"
    if where == "graph":
        right, wrong = wrong, right
    with pytest.raises(ExportError, match=rf"{wrong.name}: it holds the text '{folder}'"):
        release.refuse_private([right, wrong], [folder])
    # Weights may hold any bytes.
    release.refuse_private([right], [folder])
