"""Checkpoint to ONNX: exports, checks, proves, and writes the artifact in one step.

Steps of `export_onnx`:
    1. Build the detector with fixed shapes from the checkpoint; count what its NMS needs on real images.
    2. `torch.onnx.export(dynamo=True)`, the ONNX checker, and the check of the interface.
    3. Parity of the float32 graph with PyTorch on real images.
    4. A lower precision, when configured, accepted by recall.
    5. Check of the graph against the target's limits, before TensorRT reads it.
    6. Recall of the finished graph, golden frames, and the manifest in the file and beside it.
    7. The layout of another program, when configured, compared with the finished graph; without golden frames.
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
import onnx

import edgerpn.manifest
from edgerpn import golden
from edgerpn.artifact import name_problem, replace_artifact, staging
from edgerpn.errors import ExportError, SelfTestError
from edgerpn.export.evaluate import RecallMeter
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.limits.check import refuse_violations
from edgerpn.export.onnx.frigate import write_frigate
from edgerpn.export.onnx.graph import (
    describe_graph,
    embed,
    export_detector,
    export_module,
    network_hw,
    proposal_config,
    save_sealed,
)
from edgerpn.export.onnx.nms_chain import NUM_CHAIN_IMAGES, choose_nms
from edgerpn.export.onnx.parity import check_parity
from edgerpn.export.photographs import (
    NUM_PARITY_IMAGES,
    calibration_images,
    parity_images,
    read_photograph,
    spread,
)
from edgerpn.export.precision.reduce import Photographs, check_measurable, reduce_precision
from edgerpn.manifest import Manifest, RecallSpec
from edgerpn.matching import TOLERANCES, match
from edgerpn.models import find_checkpoint
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.open_backend import open_backend
from edgerpn.targets import oldest_target
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.data.formats.content import Layout
from edgerpn.train.data.splits import Split, find_layouts, find_split
from edgerpn.train.evaluation import tell_of_other_split
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig

NUM_GOLDEN_IMAGES = 8
"""Images out of which the golden frames are chosen."""
NUM_GOLDEN_FRAMES = 2
"""Golden frames written beside the model."""

Infer = Callable[[np.ndarray], Outputs]
"""Frames (N, H, W, C) uint8 to the outputs of a graph; `Backend.infer` fits."""


def export_onnx(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExportConfig | None = None,
    *,
    data: str | os.PathLike[str] | Split | None = None,
    images: str | os.PathLike[str] | Sequence[Path] | None = None,
    calibration: str | os.PathLike[str] | Sequence[Path] | None = None,
    log: Callable[[str], None] | None = None,
) -> Manifest:
    """Exports a checkpoint; `output` and the files beside it appear only when every check has passed.

        from edgerpn.export import ExportConfig, export_onnx

        manifest = export_onnx("RUN/best.pt", "model.onnx", ExportConfig(target="tensorrt", network_hw=(384, 640)))
        print(manifest.parity.summary())

    Args:
        checkpoint: A checkpoint of `edgerpn train`, or GENERAL of `edgerpn.models`.
        output: The .onnx file to write; the manifest goes beside it with the suffix .json, and golden frames with the
            suffix .golden.npz.
        config: Target, sizes and precision; None: the defaults, for ONNX Runtime.
        data: Data set on whose validation images graph and network must agree and recall is measured: its folder or
            annotation file, or a split of `find_split`. None: the training folder, if it is still there.
        images: Photographs to compare graph and network on instead (a folder, or files in any order); without `data`
            recall is then not measured, which fp16 and int8 need unless `max_ar_drop` is off.
        calibration: int8: photographs like those that the model will see, not those that recall is measured on; None:
            the training images.
        log: Called with one line of text for people, now and then.

    Returns:
        The manifest as written beside the file, with parity and recall.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: Images or annotations cannot be used.
        ExportError: The sizes do not fit, the exporter fails, or the target cannot run the graph.
        ParityError: Graph and network disagree.
        RecallDropError: The precision costs more recall than allowed.
    """
    output, config, log = Path(output), config or ExportConfig(), log or (lambda _: None)
    _check_output(output)
    source = _ExportSource.load(find_checkpoint(Path(checkpoint)), config)
    photographs = _photographs(source.checkpoint, data, images, calibration, config, log)
    source, nms_chain = source.with_nms(photographs.samples, config, log)  # step 1
    log(f"exporting {source.title} for {config.target}, {config.resolved_nms} NMS")
    proto = source.export(config)  # step 2
    manifest = source.describe(config, name=output.stem, nms_chain=nms_chain)
    with _naming(output), staging(output) as temporary:
        onnx.save(proto, temporary)
        compared = spread(photographs.samples, NUM_PARITY_IMAGES)
        parity = check_parity(  # step 3
            source.reference, temporary, compared, batch=config.fixed_batch, exif=manifest.input.exif_reading
        )
        log(parity.summary())
        if config.precision != "fp32":
            parity = dataclasses.replace(parity, reference=f"checkpoint, before the graph became {config.precision}")
        manifest = manifest.replace(parity=parity)
        measurable = proto
        if config.precision != "fp32":  # step 4
            proto, measurable, manifest = _reduce(proto, manifest, config, photographs, log)
        for warning in refuse_violations(proto, oldest_target(config.target), manifest, where=output.name):  # step 5
            log(warning.text())
        if photographs.meter is not None:  # step 6
            manifest = manifest.replace(recall=_recall(measurable, manifest, photographs.meter))
        expected = _golden(measurable, manifest, photographs.samples)
        save_sealed(proto, manifest, temporary)
        is_steady = _self_test(temporary, expected, config, log)
        if config.layout == "frigate":  # step 7
            manifest = write_frigate(temporary, temporary, expected.frames, min_score=config.frigate_min_score)
        if config.golden and is_steady and config.layout == "proposals":
            written = golden.write(expected, temporary)
            manifest = manifest.replace(golden=dataclasses.replace(written, file=golden.golden_path(output).name))
        edgerpn.manifest.write(manifest, temporary)
        replace_artifact(temporary, output)
    return edgerpn.manifest.read(output)


def _photographs(
    checkpoint: Checkpoint,
    data: str | os.PathLike[str] | Split | None,
    images: str | os.PathLike[str] | Sequence[Path] | None,
    calibration: str | os.PathLike[str] | Sequence[Path] | None,
    config: ExportConfig,
    log: Callable[[str], None],
) -> Photographs:
    """Returns the photographs that the caller names, else those of the training folder.

    Raises:
        DataError: Images or annotations cannot be used.
        ExportError: There are none, or none with the annotations that the precision is accepted by.
    """
    split: Split | None = None
    if data is not None:
        split = data if isinstance(data, Split) else find_split(Path(data), "val", log=log)
        split = split.read_like(checkpoint.settings.data.exif)
    elif images is None and (layouts := _layouts_trained_on(checkpoint)):
        choice = checkpoint.settings.data.choice
        # A set with a validation split only, or one from which training held images out.
        if any({"train", choice.rule.val} & layout.splits.keys() for layout in layouts):
            split = find_split(Path(checkpoint.data_folder), "val", choice, log)
            tell_of_other_split(checkpoint, split, log)
    check_measurable(config, has_annotations=split is not None)
    if isinstance(images, (str, os.PathLike)):
        samples = parity_images(None, Path(images), most=NUM_CHAIN_IMAGES, log=log)
    else:
        samples = parity_images(split, None, most=NUM_CHAIN_IMAGES) if images is None else list(images)
    if not samples:
        raise ExportError("no images to compare the graph with the network; name a folder of photographs with --images")
    if config.precision != "int8":
        calibrated: Sequence[Path] = ()
    elif calibration is None or isinstance(calibration, (str, os.PathLike)):
        calibrated = _calibration(calibration, checkpoint, log)
    else:
        calibrated = calibration
    meter = RecallMeter(split) if split is not None else None
    return Photographs(samples=samples, calibration=calibrated, meter=meter)


def _layouts_trained_on(checkpoint: Checkpoint) -> list[Layout]:
    """Returns the layouts of the folder that a checkpoint was trained on; none if it is gone."""
    folder = Path(checkpoint.data_folder)
    if not checkpoint.data_folder or not folder.is_dir():
        return []
    return find_layouts(folder, checkpoint.settings.data.format)


def _calibration(
    folder: str | os.PathLike[str] | None, checkpoint: Checkpoint, log: Callable[[str], None]
) -> list[Path]:
    """int8: photographs of the named folder, or those that the model was trained on.

    Raises:
        ExportError: Neither is there.
        DataError: There are no photographs in it.
    """
    if folder is not None:
        return calibration_images(Path(folder), log=log)
    if not any("train" in layout.splits for layout in _layouts_trained_on(checkpoint)):
        raise ExportError(
            "--precision int8 needs photographs to calibrate on, and the training folder is not here; name a folder of "
            "them with --calibration DIR"
        )
    return calibration_images(Path(checkpoint.data_folder), log=log, choice=checkpoint.settings.data.choice)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ExportSource:
    """A checkpoint, with the sizes and the proposal stage of its export."""

    file: Path
    checkpoint: Checkpoint
    model: Rpn
    hw: tuple[int, int]
    proposals: ProposalConfig
    config: ExportConfig

    @classmethod
    def load(cls, file: Path, config: ExportConfig) -> _ExportSource:
        model, checkpoint = load_model(file)
        if not config.classes:
            model.region_head = None
        return cls(
            file=file,
            checkpoint=checkpoint,
            model=model,
            hw=network_hw(checkpoint, config),
            proposals=proposal_config(checkpoint, config),
            config=config,
        )

    @property
    def title(self) -> str:
        return f"{self.checkpoint.settings.model.backbone} at {self.hw[0]}x{self.hw[1]}"

    @property
    def reference(self) -> Detector:
        """The network with exact NMS over all that `pre_nms` leaves."""
        exact = dataclasses.replace(self.proposals, nms_candidates=None)
        source_hw, num_channels = self.config.source_hw, self.config.num_channels
        detector = Detector(
            self.model,
            exact,
            network_hw=self.hw,
            source_hw=source_hw,
            num_channels=num_channels,
            embeddings=self.config.embeddings,
            roi_hw=self.config.roi_features,
        )
        return detector.eval()

    def with_nms(
        self, images: Sequence[Path], config: ExportConfig, log: Callable[[str], None]
    ) -> tuple[_ExportSource, int | None]:
        """Chooses rounds and candidates of the NMS by the images; returns the same, and the rounds that these need."""
        exif = self.checkpoint.settings.data.choice.images.reading
        proposals, chain = choose_nms(
            self.model, self.proposals, images, config, network_hw=self.hw, exif=exif, log=log
        )
        return dataclasses.replace(self, proposals=proposals), chain

    def export(self, config: ExportConfig) -> onnx.ModelProto:
        return export_detector(export_module(self.model, self.proposals, config, self.hw), config)

    def describe(self, config: ExportConfig, *, name: str, nms_chain: int | None) -> Manifest:
        return describe_graph(
            self.file,
            self.checkpoint,
            config,
            self.proposals,
            self.hw,
            name=name,
            nms_chain=nms_chain,
            map_channels=self.model.map_channels,
        )


@contextlib.contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Names the output in an error of writing, such as a full disk, where the library does not name it.

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
    """Refuses an output that cannot be written or would replace another file, before the work.

    Raises:
        ExportError: The name does not end in .onnx, or it is a folder, or another file has the manifest's name.
    """
    if output.suffix != ".onnx":
        raise ExportError(f"{output}: expected a file name that ends in .onnx")
    problem = name_problem(output)
    if problem is not None:
        raise ExportError(problem)
    if output.is_dir():
        raise ExportError(f"{output}: this is a folder, expected the name of a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    sidecar = edgerpn.manifest.manifest_path(output)
    if sidecar.exists() and not edgerpn.manifest.is_manifest(sidecar):
        raise ExportError(f"{sidecar}: not a manifest; it would be overwritten. Choose another output name")


def _reduce(
    proto: onnx.ModelProto,
    manifest: Manifest,
    config: ExportConfig,
    photographs: Photographs,
    log: Callable[[str], None],
) -> tuple[onnx.ModelProto, onnx.ModelProto, Manifest]:
    """Step 4: the graph in the configured precision, its form to measure, and the manifest with its acceptance."""
    embed(proto, manifest)
    reduced = reduce_precision(proto, config, spec=manifest.input, photographs=photographs, log=log)
    opset = next(entry.version for entry in reduced.proto.opset_import if not entry.domain)
    manifest = manifest.replace(precision=config.precision, accepted=reduced.accepted, opset=opset)
    return reduced.proto, reduced.measurable, manifest


def _recall(proto: onnx.ModelProto, manifest: Manifest, meter: RecallMeter) -> RecallSpec:
    """Measures the recall of the finished graph."""
    embed(proto, manifest)
    return meter.recall(proto)


def _golden(measurable: onnx.ModelProto, manifest: Manifest, images: Sequence[Path]) -> golden.Golden:
    """Chooses golden frames of the images, with the proposals that a GPU would find."""
    shape, exif = manifest.input.frame_shape, manifest.input.exif_reading
    frames = [read_photograph(image, shape, exif) for image in spread(images, NUM_GOLDEN_IMAGES)]
    with tempfile.TemporaryDirectory(prefix="edgerpn-golden-") as folder:
        file = Path(folder) / "graph.onnx"
        embed(measurable, manifest)
        onnx.save(measurable, file)
        with contextlib.closing(open_backend(file, providers=["cpu"])) as backend:
            return make_golden(backend.infer, frames)


def make_golden(infer: Infer, frames: Sequence[np.ndarray]) -> golden.Golden:
    """Chooses the frames that distinguish a working machine from a broken one best, and runs them.

    A self-test must not fail for rounding. Each frame is therefore run as it is and one grey level brighter, and those
    are kept whose proposals change least; frames with less than half the proposals of the richest one are no test.

    Args:
        infer: Runs the model, one frame at a time.
        frames: Photographs, each (H, W, C) uint8 laid into the graph's input; at least one.

    Raises:
        ValueError: There are no frames.
    """
    if not frames:
        raise ValueError("frames: expected at least one, got none")
    outputs = [infer(frame[None]) for frame in frames]
    counts = [int(output[2][0]) for output in outputs]
    changes = [_changed_share(infer, frame, output) for frame, output in zip(frames, outputs, strict=True)]
    rich = [index for index, count in enumerate(counts) if 2 * count >= max(counts)]
    # The order of the photographs decides between equals, and is kept.
    chosen = sorted(sorted(rich, key=lambda index: (changes[index], -counts[index]))[:NUM_GOLDEN_FRAMES])
    expected = Outputs.join([outputs[i] for i in chosen])
    return golden.Golden(frames=np.stack([frames[i] for i in chosen]), **expected._asdict())


def _changed_share(infer: Infer, frame: np.ndarray, output: Outputs) -> float:
    """Share of proposals, 0..1, without a counterpart when every pixel is one grey level brighter."""
    brighter = np.minimum(frame, 254) + np.uint8(1)
    before, after = (
        (boxes[0, : int(count[0])], scores[0, : int(count[0])])
        for boxes, scores, count, *_ in (output, infer(brighter[None]))
    )
    largest = max(len(before[1]), len(after[1]))
    pairs, _ = match(before, after, TOLERANCES["fp16"])
    return (largest - len(pairs)) / largest if largest else 0.0


def _self_test(file: Path, expected: golden.Golden, config: ExportConfig, log: Callable[[str], None]) -> bool:
    """Runs the finished file on the golden frames, as a runtime will.

    Rounding alone decides the proposals of an untrained network. When recall is not checked (`max_ar_drop` is off), a
    reduced precision may therefore fail; golden frames, which would prove nothing, are then left out.

    Returns:
        Whether it finds the expected proposals, and there are any.

    Raises:
        SelfTestError: It finds others, although recall is checked or the precision is fp32.
    """
    if not expected.count.any():
        log("warning: no golden frames: the graph proposes nothing on them, so they would prove nothing")
        return False
    with contextlib.closing(open_backend(file, providers=["cpu"])) as backend:
        # One at a time, because the batch may be fixed.
        outputs = Outputs.join([backend.infer(frame[None]) for frame in expected.frames])
        try:
            golden.compare(expected, outputs, backend.manifest, where=f"{file.name} ({backend.name})")
        except SelfTestError as error:
            if config.precision == "fp32" or config.ar_budget is not None:
                raise
            log(f"warning: no golden frames: rounding alone changes the proposals of this network. {error}")
            return False
    return True
