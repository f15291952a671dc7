"""The export in Frigate's layout; `tests/export/packages/test_frigate.py` reads the rows by Frigate's rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import edgerpn.manifest
from edgerpn import golden
from edgerpn.errors import EngineLoadError, ParityError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.inspection import conclusion, inspect_artifact
from edgerpn.export.onnx import frigate
from edgerpn.export.onnx.export import export_onnx
from edgerpn.runtime import load


@pytest.mark.slow
def test_the_exported_rows_are_the_proposals_of_the_plain_export(
    exported: Callable[[str], Any], peaks_frames: dict[str, Any], peaks_files: list[Path], tmp_path: Path
) -> None:
    plain = exported("peaks-standard")
    file = tmp_path / "frigate.onnx"
    config = dataclasses.replace(plain.config, layout="frigate", frigate_min_score=0.6)
    described = export_onnx(plain.checkpoint, file, config, images=peaks_files)
    assert (described.layout, described.schema, described.input.batch) == ("frigate", 4, 1)
    assert described == edgerpn.manifest.read(file)
    assert described.parity is not None
    assert (described.parity.num_matched, described.parity.batch_sizes) == (11, (1,))
    assert described.golden is None
    assert not golden.golden_path(file).exists()
    session = onnxruntime.InferenceSession(file)
    with load(plain.file) as model:
        counts = {}
        for name, frame in peaks_frames.items():
            (rows,) = session.run(None, {"frames": frame[None]})
            proposals = model(frame)
            counts[name] = len(proposals)
            used = rows[: len(proposals)]
            assert used[:, 1:5] == pytest.approx(proposals.boxes)
            assert used[:, 5] == pytest.approx(frigate.raise_scores(proposals.scores, 0.6))
            assert used[:, 6].tolist() == [0.0] * len(proposals)
            assert rows[len(proposals) :].tolist() == [[0, 0, 0, 0, 0, 0, -1]] * (20 - len(proposals))
    assert counts == {"zero": 0, "one": 1, "many": 10}
    with pytest.raises(EngineLoadError, match=r"frigate\.onnx: this graph is in the layout of frigate"):
        load(file)
    assert conclusion(file, inspect_artifact(file)["checks"]).endswith(
        "frigate.onnx: cannot run here because of: layout"
    )


def test_rows_that_are_not_the_proposals_are_refused(
    exported: Callable[[str], Any], peaks_frames: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([*peaks_frames.values()])
    for right, wrong in (("Less(ranks", "LessOrEqual(ranks"), ("Pow(", "Sub(")):
        monkeypatch.setattr(frigate, "_ROWS", frigate._ROWS.replace(right, wrong))
        with pytest.raises(ParityError, match="the rows for Frigate are not the proposals of"):
            frigate.write_frigate(exported("peaks-standard").file, tmp_path / "rows.onnx", frames, min_score=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 2}, "batch: expected 1 for the layout frigate, got 2"),
        ({"batch": "dynamic"}, "batch: expected 1 for the layout frigate, got 'dynamic'"),
        ({"channels": "bgrx"}, "channels: expected bgr for the layout frigate, got 'bgrx'"),
        ({"embeddings": True}, "embeddings: expected False for the layout frigate, got True"),
        ({"roi_features": (7, 7)}, "roi_features: expected None for the layout frigate"),
        ({"target": "tensorrt-rtx"}, "target: expected onnxruntime or tensorrt for the layout frigate"),
        ({"precision": "int8", "target": "tensorrt"}, "target: expected onnxruntime for int8 in the layout frigate"),
        ({"frigate_min_score": 1.0}, "frigate_min_score: expected more than 0 and less than 1, got 1.0"),
    ],
)
def test_settings_that_do_not_fit_the_layout_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(layout="frigate", **values)
    assert ExportConfig(layout="frigate").fixed_batch == 1
