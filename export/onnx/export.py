"""Checkpoint to ONNX: export, check, prove, and write the artifact in one step.

Steps of `export_onnx`:
    1. Build the detector with fixed shapes from the checkpoint; count what its NMS needs on real images.
    2. `torch.onnx.export(dynamo=True)`, the ONNX checker, and the check of the interface.
    3. Parity of the float32 graph with PyTorch on real images.
    4. A lower precision, when asked for, gated by recall.
    5. What the target cannot do is looked for, before TensorRT sees the graph.
    6. Recall of the finished graph, golden frames, and the manifest in the file and beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

import edgerpn.manifest
from edgerpn import files, golden
from edgerpn.errors import ExportError, SelfTestError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.limits.check import refuse_violations
from edgerpn.export.onnx.export_module import export_module, network_hw, proposal_config
from edgerpn.export.onnx.golden_frames import make_golden
from edgerpn.export.onnx.graph import export_detector
from edgerpn.export.onnx.graph_manifest import describe, embed, save_sealed
from edgerpn.export.onnx.nms_chain import (
    check_convergence,
    choose_candidates,
    choose_iterations,
    measure_candidates,
    measure_chain,
    refuse_short_list,
    with_margin,
)
from edgerpn.export.onnx.parity import ParityReport, check_parity, network_frame
from edgerpn.export.photographs import spread
from edgerpn.export.precision.meter import RecallMeter
from edgerpn.export.precision.reduce import Photographs, reduce_precision
from edgerpn.manifest import Manifest, RecallSpec
from edgerpn.progress import track
from edgerpn.runtime.backends.open_backend import open_backend
from edgerpn.targets import TOPK_LIMIT, oldest_target
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig

NUM_CHAIN_IMAGES = 100
"""Images on which the work of the portable NMS is measured, at most."""
NUM_PARITY_IMAGES = 16
"""Images on which graph and network are compared, at most."""
NUM_GOLDEN_IMAGES = 8
"""Images out of which the golden frames are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export produced."""

    manifest: Manifest
    """As written beside the file."""
    parity: ParityReport
    """How well the float32 graph and the network agree."""


def export_onnx(
    checkpoint_file: Path,
    output: Path,
    config: ExportConfig,
    *,
    images: Sequence[Path],
    calibration: Sequence[Path] = (),
    meter: RecallMeter | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Exports a checkpoint; `output` and what lies beside it appear only when every check has passed.

    Args:
        checkpoint_file: A checkpoint of `edgerpn train`.
        output: The .onnx file to write; the manifest goes beside it with the suffix .json, and golden frames with the
            suffix .golden.npz.
        config: Target, sizes and precision.
        images: Real photographs on which graph and network must agree; at least one, in any order.
        calibration: int8: photographs like those that the model will see, not those that recall is measured on.
        meter: Measures recall on annotated photographs; fp16 and int8 need it unless `max_ar_drop` is off.
        say: Called with one line of text for people, now and then.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: Images or annotations cannot be used.
        ExportError: The sizes do not fit, the exporter fails, or the target cannot run the graph.
        ParityError: Graph and network disagree.
        RecallDropError: The precision costs more recall than allowed.
    """
    _check_output(output)
    if not images:
        raise ExportError("no images to compare the graph with the network; name a folder of photographs with --images")
    network = _Network.load(checkpoint_file, config)
    chain, network = _measure_nms(network, images, config, say)  # step 1
    say(f"exporting {network.title} for {config.target}, {config.resolved_nms} NMS")
    proto = network.export(config)  # step 2
    manifest = network.describe(config, name=output.stem, nms_chain=chain)
    with _naming(output), files.replacing(output) as temporary:
        onnx.save(proto, temporary)
        compared = spread(images, NUM_PARITY_IMAGES)
        parity = check_parity(network.reference, temporary, compared, batch=config.fixed_batch)  # step 3
        say(parity.summary())
        manifest = manifest.replace(parity=parity.spec(config.precision))
        measurable = proto
        if config.precision != "fp32":  # step 4
            photographs = Photographs(samples=images, calibration=calibration, meter=meter)
            proto, measurable, manifest = _reduce(proto, manifest, config, photographs, say)
        for warning in refuse_violations(proto, oldest_target(config.target), manifest, where=output.name):  # step 5
            say(warning.text())
        if meter is not None:  # step 6
            manifest = manifest.replace(recall=_recall(measurable, manifest, meter))
        expected = _golden(network.reference, measurable, manifest, images)
        save_sealed(proto, manifest, temporary)
        is_steady = _self_test(temporary, expected, config, say)
    golden.golden_path(output).unlink(missing_ok=True)
    if config.golden and is_steady:
        manifest = manifest.replace(golden=golden.write(expected, output))
    edgerpn.manifest.write(manifest, output)
    return ExportResult(manifest=edgerpn.manifest.read(output), parity=parity)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Network:
    """A checkpoint and what is to be exported of it."""

    file: Path
    checkpoint: Checkpoint
    model: Rpn
    hw: tuple[int, int]
    proposals: ProposalConfig
    source_hw: tuple[int, int] | None

    @classmethod
    def load(cls, file: Path, config: ExportConfig) -> _Network:
        model, checkpoint = load_model(file)
        return cls(
            file=file,
            checkpoint=checkpoint,
            model=model,
            hw=network_hw(checkpoint, config),
            proposals=proposal_config(checkpoint, config),
            source_hw=config.source_hw,
        )

    @property
    def title(self) -> str:
        return f"{self.checkpoint.settings.model.backbone} at {self.hw[0]}x{self.hw[1]}"

    @property
    def reference(self) -> Detector:
        """The network with exact NMS over all that `pre_nms` leaves."""
        exact = dataclasses.replace(self.proposals, nms_candidates=None)
        return Detector(self.model, exact, network_hw=self.hw, source_hw=self.source_hw).eval()

    def export(self, config: ExportConfig) -> onnx.ModelProto:
        return export_detector(export_module(self.model, self.proposals, config, self.hw), config)

    def describe(self, config: ExportConfig, *, name: str, nms_chain: int | None) -> Manifest:
        return describe(self.file, self.checkpoint, config, self.proposals, self.hw, name=name, nms_chain=nms_chain)


@contextlib.contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Turns a full disk and the like, of which libraries do not say where, into an error that does.

    Raises:
        ExportError: The output cannot be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (str, os.PathLike)) and Path(error.filename).parent != output.parent:
            raise
        raise ExportError(f"{output}: cannot be written: {error.strerror or error}") from error


def _check_output(output: Path) -> None:
    """Refuses, before the work, what cannot be written or would replace something else.

    Raises:
        ExportError: The name is not an ONNX file's, or a folder's, or the manifest's name is taken by another file.
    """
    if output.suffix != ".onnx":
        raise ExportError(f"{output}: expected a file name that ends in .onnx")
    if output.is_dir():
        raise ExportError(f"{output}: this is a folder, expected the name of a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    sidecar = edgerpn.manifest.manifest_path(output)
    if sidecar.exists() and not edgerpn.manifest.is_manifest(sidecar):
        raise ExportError(f"{sidecar}: the manifest would replace this file, which is none; choose another name")


def _measure_nms(
    network: _Network, images: Sequence[Path], config: ExportConfig, say: Callable[[str], None]
) -> tuple[int | None, _Network]:
    """Step 1: rounds that the images need at most, and the network with rounds and candidates chosen by them.

    Raises:
        ParityError: Fewer were asked for than an image needs.
    """
    if config.resolved_nms != "portable":
        return None, _cut(network, images, config, say)
    seen = spread(images, NUM_CHAIN_IMAGES)
    every = network.reference

    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        return (network_frame(every, image)[None] for image in track(seen, "NMS on images", unit="image"))

    chain = measure_chain(every, frames())
    candidates = choose_candidates(chain) if config.nms_candidates is None else config.nms_candidates
    proposals = dataclasses.replace(network.proposals, nms_candidates=None if candidates == "all" else candidates)
    cut = Detector(network.model, proposals, network_hw=network.hw, source_hw=network.source_hw).eval()
    # A cut leaves out boxes, and with them chains.
    chain = measure_chain(cut, frames()) if proposals.nms_candidates else chain
    rounds = config.nms_iterations or choose_iterations(chain)
    if rounds < chain.longest or chain.candidates > (proposals.nms_candidates or chain.candidates):
        check_convergence(cut, frames(), rounds, names=[image.name for image in seen])
    say(f"{chain.summary()}; the graph does {rounds} rounds on {proposals.nms_candidates or 'all'}")
    return chain.longest, dataclasses.replace(network, proposals=dataclasses.replace(proposals, nms_iterations=rounds))


def _cut(network: _Network, images: Sequence[Path], config: ExportConfig, say: Callable[[str], None]) -> _Network:
    """Step 1 for the standard NMS: the network with one list of candidates, long enough for the images.

    Raises:
        ParityError: Fewer were asked for than an image needs.
    """
    every = network.reference
    seen = spread(images, NUM_PARITY_IMAGES)
    frames = (network_frame(every, image)[None] for image in track(seen, "NMS on images", unit="image"))
    needed = measure_candidates(every, frames)
    sizes = [len(every.get_buffer(f"anchors_{level}")) for level in range(every.num_levels)]
    candidates = sum(min(config.pre_nms, size) for size in sizes)
    if config.nms_candidates is None:
        candidates = min(candidates, max(config.pre_nms, with_margin(max(needed))))
    elif config.nms_candidates != "all":
        candidates = min(candidates, config.nms_candidates)
        refuse_short_list(candidates, needed, [image.name for image in seen])
    said = f"NMS on {len(seen)} images: proposals among the best {max(needed)} candidates"
    if config.target != "onnxruntime" and candidates > TOPK_LIMIT:
        say(f"{said}; the graph goes level by level, for {config.target} sorts no list of {candidates}")
        return network
    say(f"{said}; the graph looks at {candidates}")
    return dataclasses.replace(network, proposals=dataclasses.replace(network.proposals, nms_candidates=candidates))


def _reduce(
    proto: onnx.ModelProto,
    manifest: Manifest,
    config: ExportConfig,
    photographs: Photographs,
    say: Callable[[str], None],
) -> tuple[onnx.ModelProto, onnx.ModelProto, Manifest]:
    """Step 4: the graph in the precision asked for, its form to measure, and the manifest that says how it passed."""
    embed(proto, manifest)
    reduced = reduce_precision(proto, config, spec=manifest.input, photographs=photographs, say=say)
    opset = next(entry.version for entry in reduced.proto.opset_import if not entry.domain)
    manifest = manifest.replace(precision=config.precision, accepted=reduced.accepted, opset=opset)
    return reduced.proto, reduced.measurable, manifest


def _recall(proto: onnx.ModelProto, manifest: Manifest, meter: RecallMeter) -> RecallSpec:
    """The finished graph's recall."""
    embed(proto, manifest)
    return meter.recall(proto)


def _golden(
    reference: Detector, measurable: onnx.ModelProto, manifest: Manifest, images: Sequence[Path]
) -> golden.Golden:
    """Golden frames out of some of the images, and what a GPU would give for them."""
    frames = [network_frame(reference, image) for image in spread(images, NUM_GOLDEN_IMAGES)]
    with tempfile.TemporaryDirectory(prefix="edgerpn-golden-") as folder:
        file = Path(folder) / "graph.onnx"
        embed(measurable, manifest)
        onnx.save(measurable, file)
        with contextlib.closing(open_backend(file, providers=["cpu"])) as backend:
            return make_golden(backend.infer, frames)


def _self_test(file: Path, expected: golden.Golden, config: ExportConfig, say: Callable[[str], None]) -> bool:
    """Runs the finished file on the golden frames, as a runtime will.

    The proposals of an untrained network hang on rounding alone; so when recall is not asked for (`max_ar_drop` is
    off) a reduced precision may fail, and the golden frames, which could prove nothing, are left out.

    Returns:
        Whether it gives the expected proposals.

    Raises:
        SelfTestError: It does not, and should.
    """
    with contextlib.closing(open_backend(file, providers=["cpu"])) as backend:
        # One by one, because the batch may be fixed.
        outputs = [backend.infer(frame[None]) for frame in expected.frames]
        boxes, scores, count = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
        try:
            golden.compare(expected, (boxes, scores, count), backend.manifest, where=f"{file.name} ({backend.name})")
        except SelfTestError as error:
            if config.precision == "fp32" or config.ar_budget is not None:
                raise
            say(f"warning: no golden frames: rounding alone changes the proposals of this network. {error}")
            return False
    return True
