"""The graph in the layout that Frigate reads from detectors with `model_type: yolonas`.

The output `rows` [20, 7] holds batch, x1, y1, x2, y2 in pixels of the frame, score and class of the best proposals. The
class of a row without a proposal is -1, and Frigate stops there. The batch is 1.

Frigate keeps scores above 0.5 only, whatever its settings (from 0.4 as it reads the rows, above 0.5 in its NMS), and
scores of proposals are low: the graph raises them to a power, by which a score of the user's choice becomes 0.5. Their
order stays.

Source: blakeblackshear/frigate, frigate/detectors/plugins/onnx.py, frigate/object_detection/base.py and
frigate/util/object.py (`reduce_detections`), read in 2026.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.compose
import onnx.parser
import onnxruntime
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from edgerpn.errors import ExportError, ParityError
from edgerpn.export.onnx.graph import save_sealed
from edgerpn.manifest import FRIGATE_ROWS, SCHEMA_LAYOUT, Manifest, frigate_outputs
from edgerpn.matching import match
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.onnxruntime import harmful_optimizers
from edgerpn.runtime.backends.open_backend import open_backend

_ROWS = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
rows (float[1, {k}, 4] boxes, float[1, {k}] scores, int32[1] count{labels}) => (float[{num_rows}, 7] rows)
<float power = {{{power}}},
 int64[1] zero = {{0}}, int64[1] most = {{{used}}}, int64[1] axis = {{1}}, int64[2] box_shape = {{-1, 4}},
 int64[2] column_shape = {{-1, 1}}, int64[4] padding = {{0, 0, {missing}, 0}}, int64[2] one_column = {{{num_rows}, 1}},
 int32[{num_rows}, 1] ranks = {{{ranks}}}>
{{
    best_boxes = Slice(boxes, zero, most, axis)
    best_scores = Slice(scores, zero, most, axis)
    box_rows = Reshape(best_boxes, box_shape)
    raised = Pow(best_scores, power)
    score_rows = Reshape(raised, column_shape)
    found = Concat <axis = 1> (box_rows, score_rows)
    padded = Pad(found, padding)
    batch = ConstantOfShape <value = float[1] {{0.0}}> (one_column)
    nothing = ConstantOfShape <value = float[1] {{-1.0}}> (one_column)
    is_valid = Less(ranks, count)
    {kind}
    class = Where(is_valid, kind, nothing)
    rows = Concat <axis = 1> (batch, padded, class)
}}
"""
"""The rows from the outputs for one frame."""
_ONE_CLASS = "kind = Identity(batch)"
_CLASSES = """best_labels = Slice(labels, zero, most, axis)
    label_rows = Reshape(best_labels, column_shape)
    numbers = Cast <to = 1> (label_rows)
    kind = Pad(numbers, padding)"""


def raise_scores(scores: npt.NDArray[np.float32], min_score: float) -> npt.NDArray[np.float32]:
    """Returns scores as the rows have them: 0, 1 and the order stay, `min_score` (above 0, below 1) becomes 0.5."""
    return scores ** np.float32(_power(min_score))


def _power(min_score: float) -> float:
    return math.log(0.5) / math.log(min_score)


def write_frigate(plain: Path, output: Path, frames: npt.NDArray[np.uint8], *, min_score: float) -> Manifest:
    """Writes a graph of ours in Frigate's layout, and proves on frames that the rows are its proposals.

    Args:
        plain: An exported ONNX file.
        output: File to write; may be `plain`. Its manifest is inside; the caller writes the one beside it.
        frames: (F, H, W, 3) uint8 BGR, as the graph's input.
        min_score: The score that becomes 0.5, see `raise_scores`.

    Returns:
        The manifest of the new graph.

    Raises:
        ExportError: Frigate cannot feed the graph.
        ParityError: The rows are not the proposals.
    """
    with contextlib.closing(open_backend(plain, providers=["cpu"])) as backend:
        manifest, expected = backend.manifest, [backend.infer(frame[None]) for frame in frames]
    if manifest.input.color_order != "BGR":
        raise ExportError(f"{plain}: its frames are {manifest.input.color_order}, and Frigate delivers BGR")
    if manifest.input.batch not in (None, 1):
        raise ExportError(f"{plain}: its batch is {manifest.input.batch}, and Frigate delivers one frame at a time")
    if harmful_optimizers(manifest):
        raise ExportError(
            f"{plain}: int8 for {manifest.target}, which Frigate's ONNX Runtime makes coarser; export it with --target "
            "onnxruntime"
        )
    proto = _with_rows(onnx.load(plain), manifest, min_score)
    manifest = manifest.replace(
        schema=SCHEMA_LAYOUT,
        layout="frigate",
        input=dataclasses.replace(manifest.input, batch=1),
        outputs=frigate_outputs(min_score),
        provenance=manifest.provenance.derived(),
    )
    save_sealed(proto, manifest, output)
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    for number, (frame, outputs) in enumerate(zip(frames, expected, strict=True)):
        (rows,) = session.run(None, {manifest.input.name: frame[None]})
        if not _agree(rows, outputs, min_score):
            raise ParityError(f"{output}: frame {number}: the rows for Frigate are not the proposals of {plain}")
    return manifest


def _agree(rows: npt.NDArray[np.float32], outputs: Outputs, min_score: float) -> bool:
    """Returns whether the rows are the best proposals, up to rounding and the order of equals."""
    count = min(int(outputs.count[0]), FRIGATE_ROWS)
    found = rows[: int(np.argmax([*(rows[:, 6] < 0), True]))]
    scores = raise_scores(outputs.scores[0, :count], min_score)
    pairs, _ = match((outputs.boxes[0, :count], scores), (found[:, 1:5], found[:, 5]))
    labels = np.zeros(count) if outputs.labels is None else outputs.labels[0]
    return len(pairs) == len(found) == count and all(labels[row] == found[at, 6] for row, at in pairs)


def _with_rows(proto: onnx.ModelProto, manifest: Manifest, min_score: float) -> onnx.ModelProto:
    """Returns the graph with the output `rows` in place of its own, for a batch of 1."""
    names = {role: spec.name for role, spec in manifest.outputs_by_role.items()}
    k = manifest.proposals.num_proposals
    used = min(k, FRIGATE_ROWS)
    text = _ROWS.format(
        ir_version=proto.ir_version,
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        k=k,
        power=_power(min_score),
        used=used,
        labels=f", int32[1, {k}] labels" if "labels" in names else "",
        kind=_CLASSES if "labels" in names else _ONE_CLASS,
        missing=FRIGATE_ROWS - used,
        num_rows=FRIGATE_ROWS,
        ranks=", ".join(map(str, range(FRIGATE_ROWS))),
    )
    rows = onnx.compose.add_prefix(onnx.parser.parse_model(text), "frigate/", rename_inputs=False, rename_outputs=False)
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.dim_param:
        make_dim_param_fixed(proto.graph, batch.dim_param, 1)
    io_map: list[tuple[str, str]] = [
        (names[role], role) for role in ("boxes", "scores", "count", "labels") if role in names
    ]
    return onnx.compose.merge_models(proto, rows, io_map=io_map, outputs=["rows"])
