"""Graphs whose frames have a fourth channel, which they ignore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import edgerpn.golden
import edgerpn.manifest
from edgerpn.__main__ import main
from edgerpn.errors import ConfigError
from edgerpn.export.compare.compare import compare_models
from edgerpn.export.compare.reseal import ChangedGraph
from edgerpn.export.photographs import fit_photograph
from edgerpn.runtime import load
from edgerpn.runtime.backends.open_backend import open_backend

GetExport = Callable[[str], Any]


def test_the_graph_is_the_usual_one_and_a_slice(exported: GetExport) -> None:
    usual, wide = (
        Counter(node.op_type for node in onnx.load(exported(name).file).graph.node)
        for name in ("portable", "portable-bgrx")
    )
    assert (wide - usual, usual - wide) == (Counter(Slice=1), Counter())
    manifest = edgerpn.manifest.read(exported("portable-bgrx").file)
    assert (manifest.input.color_order, manifest.input.frame_shape) == ("BGRx", (128, 192, 4))
    assert edgerpn.manifest.read(exported("portable").file).input.color_order == "BGR"


def test_the_proposals_are_those_of_three_channels_whatever_the_fourth_holds(
    exported: GetExport, photo_files: list[Path]
) -> None:
    rng = np.random.default_rng(0)
    usual, wide = (open_backend(exported(name).file, providers=["cpu"]) for name in ("portable", "portable-bgrx"))
    for file in photo_files:
        picture = cv2.imread(str(file))
        assert picture is not None
        frame = fit_photograph(picture, (128, 192, 4))
        other = np.dstack([frame[..., :3], rng.integers(0, 256, (128, 192), np.uint8)])
        assert (frame[..., 3] != frame[0, 0, 3]).any()
        expected = usual.infer(np.ascontiguousarray(frame[None, ..., :3]))
        assert expected[2][0] > 0
        for four in (frame, other):
            for found, wanted in zip(wide.infer(four[None]), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_its_golden_frames_have_four_channels_and_pass(exported: GetExport) -> None:
    file = exported("portable-bgrx").file
    with load(file, providers=["cpu"], self_test=True) as model:
        assert edgerpn.golden.read(file, model.manifest).frames.shape[1:] == (128, 192, 4)


@pytest.mark.parametrize("other", ["checkpoint", "portable"])
def test_it_is_compared_with_models_of_three_channels(other: str, exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("portable-bgrx")
    against = made.checkpoint if other == "checkpoint" else exported(other).file
    comparison = compare_models(made.file, against, photo_files[:2])
    assert comparison.culprit is None
    assert comparison.num_proposals > 0


def test_inspect_shows_the_fourth_channel(exported: GetExport, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(exported("portable-bgrx").file)]) == 0
    assert "frames uint8 [1, 128, 192, 4]" in capsys.readouterr().out


def test_a_changed_graph_must_have_the_channels_of_its_parent(exported: GetExport) -> None:
    parent = exported("portable-bgrx").file
    with ChangedGraph.opened(parent, parent) as changed:
        assert changed.manifest.input.color_order == "BGRx"
        assert [cv2.imread(str(image)).shape for image in changed.images] == [(128, 192, 3)] * 2
    with (
        pytest.raises(ConfigError, match=r"no tensor like 'frames' .* \[1, 128, 192, 4\]"),
        ChangedGraph.opened(exported("portable").file, parent),
    ):
        pass
