"""Image encoders of other projects: pictures as they expect them, and clear errors for graphs that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from edgerpn.errors import EngineLoadError, SinkError
from edgerpn.runtime.sinks.encoder import CropRule, ImageEncoder
from tests.support.encoders import write_colour_encoder

PLAIN: dict[str, Any] = {"margin": 0.0, "fit": "pad", "mean_rgb": (0.0, 0.0, 0.0), "std_rgb": (1.0, 1.0, 1.0)}


def pictures(num: int) -> npt.NDArray[np.float32]:
    """Pictures of different colours."""
    values = np.linspace(0.1, 1, 3 * num, dtype=np.float32).reshape(num, 3, 1, 1)
    return np.tile(values, (1, 1, 16, 16))


def test_a_crop_is_rgb_and_normalised() -> None:
    image = np.zeros((40, 60, 4), np.uint8)
    image[10:20, 30:40] = (0, 51, 255, 77)  # blue, green, red, and what is no colour
    rule = CropRule(**{**PLAIN, "mean_rgb": (0.5, 0.1, 0.0), "std_rgb": (0.25, 0.5, 1.0)})
    (picture,) = rule.cut(image, np.array([[30, 10, 40, 20]], np.float32), (8, 8))
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, np.broadcast_to(np.array([2, 0.2, 0])[:, None, None], (3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize(("fit", "rows"), [("pad", range(3, 5)), ("stretch", range(8))])
def test_a_wide_crop_keeps_its_shape_or_fills_the_input(fit: Any, rows: range) -> None:
    image = np.full((40, 60, 3), 255, np.uint8)
    (picture,) = CropRule(**{**PLAIN, "fit": fit}).cut(image, np.array([[4, 4, 44, 14]], np.float32), (8, 8))
    filled = np.flatnonzero((picture == 1).all(axis=(0, 2)))
    assert filled.tolist() == list(rows)
    assert ((picture == 1) | (picture == 0)).all()


def test_a_margin_shows_what_is_around_the_box_up_to_the_border() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:10, :10] = 255
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    inside, around = (CropRule(**{**PLAIN, "margin": margin}).cut(image, boxes, (8, 8)) for margin in (0.0, 1.0))
    assert inside[0].min() == 1
    # The crop is 20 x 20 then, of which a quarter is white.
    assert around[0].mean() == pytest.approx(0.25, abs=0.02)
    assert around[1].max() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_vectors_come_in_the_order_of_the_pictures_for_any_batch(batch: int | str, tmp_path: Path) -> None:
    path = write_colour_encoder(tmp_path / "e.onnx", pictures=[batch, 3, 16, 16], vectors=[batch, 3])
    encoder = ImageEncoder(path)
    assert encoder.input_hw == (16, 16)
    for num in (0, 1, 6, 33):
        given = pictures(num)
        expected = given[:, :, 0, 0]
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode(given), expected, atol=1e-6)


def test_half_precision_and_an_open_size_work(tmp_path: Path) -> None:
    path = write_colour_encoder(
        tmp_path / "e.onnx", pictures=["N", "C", "H", "W"], vectors=["N", "D"], dtype=TensorProto.FLOAT16
    )
    encoder = ImageEncoder(path, size_px=16)
    vectors = encoder.encode(pictures(2))
    assert encoder.input_hw == (16, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_vectors_are_found_among_several_outputs(tmp_path: Path) -> None:
    path = write_colour_encoder(tmp_path / "e.onnx", more_outputs=["hidden"])
    assert ImageEncoder(path).num_values == 3
    assert ImageEncoder(path, output="vectors").num_values == 3
    with pytest.raises(EngineLoadError, match=r"expected the output 'pooled', got vectors .*, hidden .*Set output"):
        ImageEncoder(path, output="pooled")
    with pytest.raises(EngineLoadError, match=r"got \[2, 3, 16, 16\]. Export it with pooling"):
        ImageEncoder(path, output="hidden")


@pytest.mark.parametrize(
    ("graph", "settings", "problem"),
    [
        pytest.param({"pictures": ["N", 3, 16]}, {}, r"expected one input of pictures.*got pictures", id="rank 3"),
        pytest.param({"pictures": ["N", 1, 16, 16]}, {}, "expected one input of pictures", id="grey"),
        pytest.param({"dtype": TensorProto.DOUBLE}, {}, r"got pictures tensor\(double\)", id="dtype"),
        pytest.param({"more_inputs": ["ids"]}, {}, "Export the image tower", id="both towers"),
        pytest.param({"pictures": ["N", 3, "H", "W"]}, {}, "no fixed size; set size_px, such as 224", id="open size"),
        pytest.param({}, {"size_px": 32}, "and size_px is 32; leave it out", id="another size"),
        pytest.param(
            {"before": [helper.make_node("Reshape", ["pictures", "four_pictures"], ["x"])]}, {},
            "does not run on 2 pictures", id="a batch inside",
        ),
        pytest.param({}, {"providers": ["tpu"]}, "provider 'tpu' is not in this build", id="provider"),
    ],
)  # fmt: skip
def test_another_graph_is_an_error_at_the_start(
    graph: dict[str, Any], settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    if graph.get("pictures") == ["N", 3, 16]:
        graph = {**graph, "before": [helper.make_node("Unsqueeze", ["pictures", "axis"], ["x"])]}
        graph["before"].insert(0, helper.make_node("Constant", [], ["axis"], value_ints=[3]))
    path = write_colour_encoder(tmp_path / "e.onnx", **graph)
    with pytest.raises(EngineLoadError, match=problem):
        ImageEncoder(path, **settings)


def test_a_file_that_is_missing_or_no_graph_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    with pytest.raises(EngineLoadError, match="no such file; expected an ONNX file"):
        ImageEncoder(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineLoadError, match="cannot load it"):
        ImageEncoder(path)


def test_vectors_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    log = [helper.make_node("Sub", ["one", "mean"], ["rest"]), helper.make_node("Log", ["rest"], ["vectors"])]
    encoder = ImageEncoder(write_colour_encoder(tmp_path / "e.onnx", after=log))
    with pytest.raises(SinkError, match="expected 2 finite vectors of 3 numbers"):
        encoder.encode(2 * pictures(2))


def test_another_thread_can_end_a_call(tmp_path: Path) -> None:
    encoder = ImageEncoder(write_colour_encoder(tmp_path / "e.onnx"))
    encoder.stop()
    with pytest.raises(SinkError, match="ONNX Runtime failed on 2 pictures"):
        encoder.encode(pictures(2))
