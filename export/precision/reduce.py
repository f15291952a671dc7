"""From the checked float32 graph to float16 or int8, on the condition that recall stays.

Steps of `reduce_precision`:
    1. int8: calibrate ranges on photographs.
    2. Convert the network; pre-processing and the proposal stage stay float32.
    3. AR@100 of both graphs on annotated images; done when the difference is within the budget.
    4. Else: the cost of each block alone, worst first.
    5. The worst blocks stay in the next higher precision (int8: float16, or float32 for ONNX Runtime; float16:
       float32), one after another, until the loss is within the budget.

Recall is measured in ONNX Runtime on the CPU. It computes float16 graphs in float32 without rounding, so the graph
that is measured rounds explicitly, see `emulate_half`; the graph that is returned does not.
Blocks are chosen on the images on which recall is measured: on others it may be a little lower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from edgerpn.errors import ExportError
from edgerpn.export.evaluate import RecallMeter
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.precision.blocks import NetworkNodes, find_network
from edgerpn.export.precision.calibration import CalibratedRanges, frames, measure_ranges, partial_session
from edgerpn.export.precision.gate import Logits, PrecisionVariants, RecallGate
from edgerpn.export.precision.quantize import tensors_to_calibrate
from edgerpn.manifest.parts import InputSpec, PrecisionSpec

NUM_LOGITS_IMAGES = 4
"""Images on which logits are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photographs:
    """The photographs on which a graph is compared, calibrated and measured."""

    samples: Sequence[Path]
    """Any photographs; the logits of the first few order blocks that cost the same recall."""
    calibration: Sequence[Path] = ()
    """int8: for the ranges, see `edgerpn.export.precision.calibration.calibration_images`."""
    meter: RecallMeter | None = None
    """Measures recall on annotated images; needed unless the budget is `off`."""


class ReducedGraph(NamedTuple):
    """A graph in a lower precision."""

    proto: onnx.ModelProto
    """The graph, with the inputs, outputs and metadata of the float32 one."""
    measurable: onnx.ModelProto
    """The same with explicit rounding: computes in ONNX Runtime on the CPU the numbers of `proto` on a GPU."""
    accepted: PrecisionSpec
    """The recall by which it was accepted."""


def reduce_precision(
    proto: onnx.ModelProto,
    config: ExportConfig,
    *,
    spec: InputSpec,
    photographs: Photographs,
    log: Callable[[str], None] = lambda _: None,
) -> ReducedGraph:
    """Converts a graph to `config.precision` (fp16 or int8).

    Args:
        proto: The float32 graph with its manifest in the metadata; stays as it is.
        config: Precision, target, calibration method and budget.
        spec: Input of the graph.
        photographs: On these the precision is chosen and accepted.
        log: Called with one line of text for people, now and then.

    Returns:
        The new graph, and the recall by which it was accepted.

    Raises:
        ExportError: The network cannot be converted, or there is nothing to calibrate or measure on.
        DataError: No calibration image can be read.
        RecallDropError: More recall is lost than allowed, whatever was tried.
    """
    if config.precision == "fp32":
        raise ValueError("precision: expected fp16 or int8, got fp32")
    check_measurable(config, has_annotations=photographs.meter is not None)
    network = find_network(proto)
    ranges, facts = None, PrecisionSpec(ar100=(), num_images=0)
    if config.precision == "int8":
        ranges = _calibrate(proto, network, config, spec, photographs, log)
        facts = dataclasses.replace(facts, calibration=ranges.method, num_calibration_images=ranges.num_images)
    variants = PrecisionVariants(proto=proto, network=network, config=config, ranges=ranges)
    if photographs.meter is None or config.ar_budget is None:
        log(f"{config.precision}: recall is not checked (--max-ar-drop off)")
        result = variants.build()
        return ReducedGraph(result, variants.measurable(result), facts)
    samples = [*frames(photographs.samples[:NUM_LOGITS_IMAGES], spec, log)]
    logits = _logits(network, spec, samples)
    gate = RecallGate(variants, photographs.meter, budget=config.ar_budget, logits=logits, log=log)
    result = gate.run()
    accepted = dataclasses.replace(
        facts,
        ar100=tuple((name, round(value, 5)) for name, value in gate.ar100.items()),
        num_images=photographs.meter.num_images,
        max_ar_drop=config.ar_budget,
        kept_blocks=tuple(gate.kept),
    )
    return ReducedGraph(result, variants.measurable(result), accepted)


def check_measurable(config: ExportConfig, *, has_annotations: bool) -> None:
    """Refuses a precision that is accepted by recall where nothing measures it.

    Raises:
        ExportError: There are no annotated images.
    """
    if config.ar_budget is not None and not has_annotations:
        raise ExportError(
            f"--precision {config.precision} is accepted by recall, which needs annotated validation images: name them "
            "with --data DIR (val.json and images/), or do without the check with --max-ar-drop off"
        )


def _calibrate(
    proto: onnx.ModelProto,
    network: NetworkNodes,
    config: ExportConfig,
    spec: InputSpec,
    photographs: Photographs,
    log: Callable[[str], None],
) -> CalibratedRanges:
    """Step 1."""
    images, meter = photographs.calibration, photographs.meter
    if not images:
        raise ExportError(
            "--precision int8 needs photographs to calibrate on; name a folder of them with --calibration DIR"
        )
    shared = sum(file.resolve() in meter.files for file in images) if meter else 0
    if shared:
        log(
            f"warning: {shared} of {len(images)} calibration images are validation images too, so recall on these says "
            "less about other images"
        )
    tensors = tensors_to_calibrate(proto, network, config.target)
    ranges = measure_ranges(proto, tensors, images, spec, method=config.calibration, log=log)
    log(f"calibrated {len(tensors)} tensors on {ranges.num_images} images ({ranges.method})")
    return ranges


def _logits(network: NetworkNodes, spec: InputSpec, samples: Sequence[npt.NDArray[np.uint8]]) -> Logits:
    """Returns a function that computes the logits of all anchors of each sample."""

    def run(proto: onnx.ModelProto) -> list[npt.NDArray[np.float32]]:
        names = list(network.logits)
        session = partial_session(proto, names)
        outputs = [session.run(names, {spec.name: np.stack([sample] * (spec.batch or 1))}) for sample in samples]
        return [np.concatenate([level.ravel() for level in levels]) for levels in outputs]

    return run
