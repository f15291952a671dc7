"""Calibration for int8: ranges of the network's tensors on real photographs.

Ranges come from histograms of `onnxruntime.quantization`, filled image by image, so that memory does not grow with the
number of images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.quantization.calibrate import CalibrationMethod, HistogramCollector, TensorsData

from edgerpn.errors import DataError
from edgerpn.export.export_config import Calibration
from edgerpn.export.photographs import read_photograph
from edgerpn.export.precision.blocks import ancestors
from edgerpn.manifest.parts import InputSpec
from edgerpn.progress import track

PERCENTILE = 99.999
"""Share of the absolute values of a tensor that its range holds, by the method `percentile`."""

_NUM_BINS = 2048
"""Bins of a histogram. ONNX Runtime's default for entropy, 128, leaves that method nothing to choose from."""

_NUM_LEVELS = 128
"""Steps of int8 on one side of zero, for the method `entropy`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibratedRanges:
    """Calibrated ranges of tensors."""

    tensors: TensorsData
    """As ONNX Runtime's quantizer takes them: least and greatest value by tensor."""
    method: str
    """Method by which they were chosen, for people."""
    num_images: int
    """Images that they were measured on."""


def measure_ranges(
    proto: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[Path],
    spec: InputSpec,
    *,
    method: Calibration,
    log: Callable[[str], None] = lambda _: None,
) -> CalibratedRanges:
    """Runs the float32 graph on photographs and chooses a range for each of some tensors.

    Args:
        proto: The graph.
        tensors: Names of float32 tensors in it.
        images: Photographs; one that cannot be read is skipped, with a line.
        spec: Input of the graph.
        method: `percentile` cuts off the largest 0.001 %, `entropy` loses least information in 8 bits.
        log: Called with one line of text for each image that is skipped.

    Raises:
        DataError: None of the images can be read.
    """
    session = partial_session(proto, tensors)
    collector = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=_NUM_BINS,
        num_quantized_bins=_NUM_LEVELS,
        percentile=PERCENTILE,
        scenario="same",
    )
    num_images = 0
    for batch, count in _batches(frames(track(images, "calibrating", unit="image"), spec, log), spec.batch or 1):
        outputs = session.run(list(tensors), {spec.name: batch})
        num_images += count
        with contextlib.redirect_stdout(io.StringIO()):  # the collector prints a line for every image
            collector.collect(dict(zip(tensors, outputs, strict=True)))
    if not num_images:
        raise DataError(f"none of the {len(images)} calibration images can be read, the first is {images[0]}")
    with contextlib.redirect_stdout(io.StringIO()):
        result = collector.compute_collection_result()
    kind = CalibrationMethod.Percentile if method == "percentile" else CalibrationMethod.Entropy
    name = f"percentile {PERCENTILE}" if method == "percentile" else "entropy"
    return CalibratedRanges(tensors=TensorsData(kind, result), method=name, num_images=num_images)


def frames(
    images: Iterable[Path], spec: InputSpec, log: Callable[[str], None] = lambda _: None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields photographs as the graph's input, (H, W, C) uint8; logs those that cannot be read."""
    for image in images:
        try:
            frame = read_photograph(image, spec.frame_shape, spec.exif_reading)
        except DataError as error:
            log(f"skipped: {error}")
            continue
        yield frame


def partial_session(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Makes a session on the CPU that computes `tensors` of a graph, and nothing after them."""
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    nodes = ancestors(proto, tensors)
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del part.graph.node[:], part.graph.initializer[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(constants)
    part.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _batches(items: Iterator[npt.NDArray[np.uint8]], size: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Yields stacks of `size` items and the number of new ones; the last stack repeats its own items."""
    batch: list[npt.NDArray[np.uint8]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield np.stack(batch), size
            batch = []
    if batch:
        yield np.stack([batch[i % len(batch)] for i in range(size)]), len(batch)
