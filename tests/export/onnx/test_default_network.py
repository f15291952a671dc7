"""The network of the preset `edge` as it is, where other tests export smaller ones."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from edgerpn import manifest
from edgerpn.export.engine.build import build_engine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.train.checkpoint import Checkpoint, save_checkpoint
from edgerpn.train.config import load_settings
from edgerpn.train.network.layers import set_norm_momentum
from edgerpn.train.network.model import Rpn


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with statistics of noise, and scores that are far enough apart to have an order."""
    settings = load_settings(overrides=("data.input_hw=[128, 192]",))
    torch.manual_seed(3)
    model = Rpn(settings.model).train()
    with torch.no_grad():
        set_norm_momentum(model, 0)
        model(torch.randn(4, 3, 128, 192))
        model.head.objectness.weight.normal_(std=0.3)
        model.head.deltas.weight.normal_(std=0.05)
    file = tmp_path_factory.mktemp("default") / "best.pt"
    save_checkpoint(Checkpoint(settings=settings, weights=model.state_dict(), step=1), file)
    return file


@pytest.mark.parametrize("target", [pytest.param("onnxruntime", marks=pytest.mark.slow), "tensorrt"])
def test_it_is_exported_equal_to_the_checkpoint(
    target: str, checkpoint: Path, photo_files: list[Path], tmp_path: Path
) -> None:
    config = ExportConfig(target=target, batch=1, num_proposals=50, max_ar_drop="off")  # type: ignore[arg-type]
    file = tmp_path / "model.onnx"
    # The export compares proposals with the checkpoint's, and writes nothing where they differ.
    export_onnx(checkpoint, file, config, images=photo_files)
    written = manifest.read(file)
    assert written.anchors.strides_px == (8, 16, 32, 64)
    assert written.input.network_hw == (128, 192)
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert "BatchNormalization" not in kinds
    # 6 stages, 7 blocks of two, 4 lateral, 3 bottom-up; the head's window and two outputs on 4 levels.
    assert kinds.count("Conv") == 6 + 2 * 7 + 4 + 3 + 3 * 4


@pytest.mark.slow
@pytest.mark.rtx
def test_it_compiles_with_tensorrt_rtx(checkpoint: Path, photo_files: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    config = ExportConfig(target="tensorrt-rtx", batch=1, num_proposals=20, pre_nms=100, max_ar_drop="off")
    export_onnx(checkpoint, file, config, images=photo_files[:1])
    built = build_engine(
        file, tmp_path / "a.engine", BuildConfig(backend="tensorrt-rtx", compute_capabilities=("8.6",))
    )
    assert built.num_bytes > 1_000_000
