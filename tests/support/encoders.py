"""Image encoders as ONNX files for which the right answer is known: the vector of a picture is its mean colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

COLOURS_RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "cyan": (0, 1, 1)}
"""Names and colours, 0..1."""

Shape = Sequence[int | str]


def write_colour_encoder(
    path: Path,
    *,
    pictures: Shape = ("N", 3, 16, 16),
    vectors: Shape = ("N", 3),
    dtype: int = TensorProto.FLOAT,
    before: Sequence[NodeProto] = (),
    after: Sequence[NodeProto] = (),
    more_inputs: Sequence[str] = (),
    more_outputs: Sequence[str] = (),
) -> Path:
    """Writes an encoder; `before` makes "x" of "pictures", and `after` "vectors" of "mean"."""
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        *(before or [node("Identity", ["pictures"], ["x"])]),
        node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        *(after or [node("Identity", ["mean"], ["vectors"])]),
        *(node("Identity", ["x"], [name]) for name in more_outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [info("pictures", dtype, pictures), *(info(name, TensorProto.FLOAT, ["N"]) for name in more_inputs)],
        [info("vectors", dtype, vectors), *(info(name, dtype, pictures) for name in more_outputs)],
        [
            numpy_helper.from_array(np.array(1, np.float32), "one"),
            numpy_helper.from_array(np.array([4, 3, 16, 16]), "four_pictures"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def write_colour_labels(path: Path, names: Sequence[str] = tuple(COLOURS_RGB)) -> Path:
    """Writes the vectors of colours after CLIP's normalisation, of any length."""
    mean, std = np.array((0.48145466, 0.4578275, 0.40821073)), np.array((0.26862954, 0.26130258, 0.27577711))
    vectors = (np.array([COLOURS_RGB[name] for name in names]) - mean) / std
    np.savez(path, names=np.array(names), vectors=vectors.astype(np.float32))
    return path
