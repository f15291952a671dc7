"""Two forms of one model agree, whatever forms they are; for other models the report names image and proposal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerpn import manifest as manifests
from edgerpn.errors import ConfigError, EngineLoadError, ParityError
from edgerpn.export.compare.compare import compare_models
from edgerpn.manifest.parts import EngineSpec, Precision, ProfileSpec
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

GetExport = Callable[[str], Any]
Change = Callable[[np.ndarray], np.ndarray]


def altered(source: Path, output: Path, change: Change = lambda w: w, *, precision: Precision = "fp32") -> Path:
    """A copy of an export with the weights of its objectness changed, and a manifest that fits."""
    output.parent.mkdir(parents=True, exist_ok=True)
    proto = onnx.load(source)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("objectness.weight"))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), tensor.name))
    onnx.save(proto, output)
    manifests.write(manifests.read(source).replace(precision=precision), output)
    return output


@pytest.mark.parametrize(
    ("name", "batches"), [("standard", (1, 2)), ("portable", (1,)), ("portable-source", (1,)), ("single-level", (1, 2))]
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_checkpoint_and_its_export_agree(
    name: str, batches: tuple[int, ...], is_reversed: bool, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    pair = (made.checkpoint, made.file) if is_reversed else (made.file, made.checkpoint)
    lines: list[str] = []
    result = compare_models(*pair, photo_files, log=lines.append)
    assert result.culprit is None
    assert (result.batch_sizes, result.num_images, result.differences) == (batches, 5, ())
    assert result.num_matched >= 5 * 20 * len(batches)
    assert result.unmatched_share <= 0.02
    assert len(lines) == 2
    assert lines[0].startswith(f"{pair[0].name} (")
    assert lines[1].startswith(f"against {pair[1].name} (")


def test_two_exports_of_one_checkpoint_agree(exported: GetExport, photo_files: list[Path]) -> None:
    a, b = exported("portable"), exported("standard")
    result = compare_models(a.file, b.file, photo_files)
    assert result.culprit is None
    assert result.differences == ()
    # The batch of one and the batches of the other.
    assert result.batch_sizes == (1, 2)
    assert result.names == ("model.onnx (A)", "model.onnx (B)")
    spec = result.to_parity_spec("onnx")
    assert (spec.reference, spec.num_images, spec.batch_sizes) == ("onnx", 5, (1, 2))
    assert (spec.num_matched, spec.num_boundary) == (result.num_matched, result.num_boundary)
    assert spec.min_iou >= 0.99
    assert 0 <= spec.max_score_difference <= 1e-3


def test_a_checkpoint_agrees_with_itself_as_it_was_trained(
    checkpoints: dict[str, Path], photo_files: list[Path]
) -> None:
    result = compare_models(checkpoints["pyramid"], checkpoints["pyramid"], photo_files[:2])
    assert result.culprit is None
    assert result.batch_sizes == (1,)
    assert float(result.drift[0].min()) == 1.0
    assert float(result.drift[1].max()) == 0.0


def test_a_damaged_weight_is_found_with_image_proposal_and_drift(
    exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    made = exported("standard")
    wrong = altered(made.file, tmp_path / "wrong.onnx", lambda weight: weight * 1.5)
    result = compare_models(wrong, made.file, photo_files)
    assert result.differences == ()
    assert result.culprit is not None
    worst = result.worst[0]
    assert result.culprit.startswith(f"{worst.file.name}, batch {worst.batch_size}: Proposal ")
    assert " of model.onnx, [" in result.culprit or " of wrong.onnx, [" in result.culprit
    # Boxes do not move, scores do: the drift shows it although the tolerance pairs hardly any.
    assert float(np.median(result.drift[0])) > 0.999
    assert float(np.median(result.drift[1])) > 3e-4
    assert float(result.drift[1].max()) > 1e-3
    assert len(result.worst) == 5


def test_a_lower_precision_has_more_room(exported: GetExport, photo_files: list[Path], tmp_path: Path) -> None:
    made = exported("standard")
    near = altered(made.file, tmp_path / "near.onnx", lambda weight: weight * 1.05, precision="fp16")
    result = compare_models(near, made.file, photo_files)
    assert (result.precision, result.culprit) == ("fp16", None)
    assert float(result.drift[1].max()) > 1e-4
    far = altered(made.file, tmp_path / "far.onnx", lambda weight: weight * -1, precision="int8")
    with pytest.raises(ConfigError, match="int8 rounds too coarsely to compare single proposals"):
        compare_models(far, near, photo_files)
    like = altered(made.file, tmp_path / "like.onnx", lambda weight: weight, precision="int8")
    broken = compare_models(far, like, photo_files)
    assert broken.precision == "int8"
    assert broken.culprit is not None
    assert "of the proposals of this image have none, expected at most 50%" in broken.culprit
    assert ", batch 1: Proposal 0 of far.onnx, [" in broken.culprit


def test_a_share_of_proposals_that_is_too_large_names_the_worst_image(
    exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported("standard")
    result = compare_models(made.file, made.file, photo_files[:3])
    agreement = result.images[0].agreement
    # A quarter of one image's pairs taken away: 8 % of three images at two batch sizes, or 4 % of all.
    lost = len(agreement.pairs) // 4
    kept = dataclasses.replace(
        agreement,
        pairs=agreement.pairs[lost:],
        unexplained=(tuple(e for e, _ in agreement.pairs[:lost]), tuple(f for _, f in agreement.pairs[:lost])),
    )
    first = dataclasses.replace(result.images[0], agreement=kept)
    for limit, is_broken in ((0.03, True), (0.06, False)):
        judged = dataclasses.replace(
            result,
            precision="fp16",
            images=(first, *result.images[1:]),
            tolerance=dataclasses.replace(result.tolerance, max_unmatched_share=limit),
        )
        assert (judged.culprit is not None) == is_broken
        if judged.culprit:
            assert "of all proposals have no counterpart, expected at most 3%; most in 1.png, batch 1" in judged.culprit


def test_different_models_are_called_different(
    exported: GetExport, checkpoints: dict[str, Path], photo_files: list[Path]
) -> None:
    lines: list[str] = []
    a, b = exported("single-level"), exported("portable")
    result = compare_models(a.file, b.file, photo_files[:1], log=lines.append)
    assert [line.partition(":")[0] for line in result.differences] == [
        "checkpoint",
        "network size",
        "soft_nms_iou",
        "min_size_px",
    ]
    assert lines[2] == "These are different models:"
    assert "  network size: 64x96 and 128x192" in lines
    assert result.culprit is not None
    with_peaks = compare_models(exported("peaks-standard").file, checkpoints["pyramid"], photo_files[:1])
    assert [line.partition(":")[0] for line in with_peaks.differences] == ["checkpoint"]


def test_models_of_other_frame_sizes_are_refused(exported: GetExport, photo_files: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"frames of different sizes \(model.onnx: 200x300, model.onnx: any size\)"):
        compare_models(exported("portable-source").file, exported("portable").file, photo_files)


def test_nothing_to_compare_on_or_with_is_one_clear_error(
    exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    file = exported("portable").file
    with pytest.raises(ConfigError, match="no images to compare the models on"):
        compare_models(file, file, [])
    other = tmp_path / "model.bin"
    other.write_bytes(b"?")
    with pytest.raises(EngineLoadError, match=r"no backend runs files that end in '\.bin'"):
        compare_models(file, other, photo_files)


def test_a_checkpoint_that_cannot_work_at_the_others_size_is_refused(
    exported: GetExport, checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    odd = altered(exported("peaks-standard").file, tmp_path / "odd.onnx")
    text = odd.with_suffix(".json").read_text()
    # The pyramid's coarsest stride is 32; the manifest of a graph with stride 8 may say 72.
    wrong = json.loads(text)
    wrong["input"]["network_hw"] = [72, 96]
    del wrong["digest"]
    proto = onnx.load(odd)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 72
    onnx.save(proto, odd)
    odd.with_suffix(".json").write_text(json.dumps(wrong))
    manifests.write(manifests.parse(json.dumps(wrong), source="test"), odd)
    with pytest.raises(ConfigError, match=r"pyramid\.pt cannot work at the 72x96 of odd\.onnx: .*multiples of 32"):
        compare_models(checkpoints["pyramid"], odd, photo_files)


class Engine:
    """An ONNX file whose manifest describes an engine with a profile, to test the comparison without a GPU."""

    def __init__(self, file: Path, *, tf32: bool = False) -> None:
        self._inner = OnnxRuntimeBackend(file)
        self.batches: list[int] = []
        self.is_closed = False
        spec = EngineSpec(
            library="tensorrt", library_version="10.3.0.26", compute_capabilities=("8.7",), platform="linux-aarch64",
            profile=ProfileSpec(min_batch=1, opt_batch=2, max_batch=4), tf32=tf32, build_s=1.0,
        )  # fmt: skip
        self.manifest = self._inner.manifest.replace(kind="engine", engine=spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def infer(self, frames: np.ndarray) -> Any:
        self.batches.append(len(frames))
        return self._inner.infer(frames)

    def close(self) -> None:
        self.is_closed = True


def test_an_engine_is_tried_at_every_batch_size_of_its_profile(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("standard")
    engine = Engine(made.file)
    result = compare_models(engine, made.file, photo_files)
    assert result.culprit is None
    assert result.batch_sizes == (1, 2, 4)
    assert engine.batches == [1] * 5 + [2] * 3 + [4] * 2
    # Every image once at each size, although five do not fill the batches.
    assert [len([i for i in result.images if i.batch_size == size]) for size in (1, 2, 4)] == [5, 5, 5]
    assert not engine.is_closed
    assert "(engine, fp32, ONNX Runtime" in result.a
    assert compare_models(Engine(made.file, tf32=True), made.file, photo_files[:1]).precision == "fp16"


def test_padding_that_is_not_zero_is_named_with_the_model(exported: GetExport, peaks_files: list[Path]) -> None:
    made = exported("peaks-standard")
    engine = Engine(made.file)
    real = engine.infer

    def dirty(frames: np.ndarray) -> Any:
        outputs = real(frames)
        return outputs._replace(scores=outputs.scores + np.float32(1e-6))

    engine.infer = dirty  # type: ignore[method-assign]
    with pytest.raises(ParityError, match=r"one\.png, .*: rows beyond count \(1\) are not zero"):
        compare_models(engine, made.file, [file for file in peaks_files if file.stem == "one"])
