"""`edgerpn build` with the real TensorRT-RTX, which builds without a GPU: the files written, and the refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgerpn.golden
import edgerpn.manifest
from edgerpn import files, settings
from edgerpn.errors import (
    ArtifactMismatchError,
    BuildError,
    EngineError,
    ManifestError,
    ManifestVersionError,
)
from edgerpn.export.engine.build import BuildResult, build_engine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.engine.process import run_worker
from edgerpn.manifest.parts import ProfileSpec

pytestmark = pytest.mark.rtx

RTX = BuildConfig(backend="tensorrt-rtx")


@pytest.fixture(scope="module")
def model(fixed_graph: Path) -> Path:
    """A graph with a fixed batch and golden frames; tests may not change it."""
    return fixed_graph


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy of the graph that the test may damage."""
    for file in model.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / model.name


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildResult, Path, list[str]]:
    """An engine with the default options, its file, and the printed lines."""
    lines: list[str] = []
    output = tmp_path_factory.mktemp("built") / "deep" / "fish.engine"
    return build_engine(model, output, RTX, log=lines.append), output, lines


def test_an_engine_has_manifest_golden_frames_and_report_beside_it(
    built: tuple[BuildResult, Path, list[str]], model: Path
) -> None:
    result, output, _ = built
    names = ["fish.engine", "fish.engine.build.json", "fish.engine.golden.npz", "fish.engine.json"]
    assert sorted(file.name for file in output.parent.iterdir()) == names
    manifest = edgerpn.manifest.read(output)
    assert manifest == result.manifest
    onnx_manifest = edgerpn.manifest.read(model)
    assert (manifest.kind, manifest.name, manifest.target) == ("engine", "fish", "tensorrt-rtx")
    assert manifest.provenance.onnx_sha256 == files.sha256(model)
    assert manifest.provenance.artifact_sha256 == files.sha256(output)
    assert manifest.provenance.checkpoint_sha256 == onnx_manifest.provenance.checkpoint_sha256
    assert (manifest.input, manifest.outputs) == (onnx_manifest.input, onnx_manifest.outputs)
    assert manifest.parity is None
    golden, source = edgerpn.golden.read(output, manifest), edgerpn.golden.read(model, onnx_manifest)
    assert np.array_equal(golden.frames, source.frames)
    assert result.num_bytes == output.stat().st_size > 20_000


def test_layer_times_without_a_gpu_are_reported_as_missing(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = dataclasses.replace(RTX, profile=True)
    result = build_engine(model, tmp_path / "a.engine", config, log=lines.append)
    assert result.manifest.engine is not None
    if result.manifest.engine.gpu is None:
        assert "the layers were not timed (--profile): there is no NVIDIA GPU or driver here" in lines


def test_the_manifest_describes_options_and_target_of_the_engine(built: tuple[BuildResult, Path, list[str]]) -> None:
    engine = built[0].manifest.engine
    assert engine is not None
    import tensorrt_rtx

    assert (engine.library, engine.library_version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert engine.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert engine.platform.startswith("linux-")
    assert engine.profile == ProfileSpec(min_batch=1, opt_batch=1, max_batch=1)
    assert engine.cuda is not None
    assert 0 < engine.build_s < 120
    switches = (engine.tf32, engine.version_compatible, engine.hardware_compatible)
    assert not any(switches)
    # Facts of a GPU are there together, or not at all.
    assert (engine.gpu is None) == (engine.num_layers is None)


def test_the_report_holds_options_phases_and_the_log_of_the_library(built: tuple[BuildResult, Path, list[str]]) -> None:
    assert built[0].report is not None
    report = json.loads(built[0].report.read_text())
    assert (report["result"], report["error"]) == ("built", None)
    assert report["options"] == settings.to_dict(RTX)
    assert report["phases_s"]["Building engine"] > 0
    assert [(line["severity"], line["text"].split(":")[0]) for line in report["log"] if "Opset" in line["text"]] == [
        ("info", "Opset version")
    ]
    assert report["num_log_lines"] == len(report["log"])
    assert [step["result"] for step in report["tries"]] == ["built"]
    assert report["tries"][0]["peak_mib"] > 20


def test_an_engine_that_cannot_run_here_is_reported_as_untried(built: tuple[BuildResult, Path, list[str]]) -> None:
    result, output, lines = built
    if result.manifest.engine is not None and result.manifest.engine.gpu is not None:
        pytest.skip("there is a GPU here")
    assert lines[-1].startswith("the engine was not tried here: there is no NVIDIA GPU or driver")
    assert f"edgerpn check {output.name} --against model.onnx --images DIR" in lines[-1]


def test_a_dynamic_graph_gets_the_configured_batches_and_compute_capabilities(
    small_graph: Callable[..., Path], tmp_path: Path
) -> None:
    capabilities = ("8.0", "8.6", "8.9", "12.0")
    config = BuildConfig(
        backend="tensorrt-rtx", batch=(1, 2, 4), compute_capabilities=capabilities, optimization_level=1,
        workspace_mib=512,
    )  # fmt: skip
    result = build_engine(small_graph(batch=None), tmp_path / "a.plan", config)
    engine = result.manifest.engine
    assert engine is not None
    assert engine.profile == ProfileSpec(min_batch=1, opt_batch=2, max_batch=4)
    assert engine.compute_capabilities == capabilities
    assert (engine.optimization_level, engine.workspace_mib) == (1, 512)
    assert result.manifest.input.batch is None


def test_a_library_error_is_quoted_with_a_hint_and_the_report_stays(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_engine(model, tmp_path / "a.engine", dataclasses.replace(RTX, workspace_mib=1))
    text = str(caught.value)
    assert "the library says: " in text
    assert "workspace limit" in text
    assert "a larger workspace (--set workspace_mib=N)" in text
    assert str(tmp_path / "a.engine.build.json") in text
    report = json.loads((tmp_path / "a.engine.build.json").read_text())
    assert report["result"] == "failed"
    assert "workspace limit" in report["error"]
    assert [line["severity"] for line in report["log"]].count("error") >= 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.engine.build.json"]


def test_a_compute_capability_that_the_library_lacks_is_refused_with_those_it_has(model: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(RTX, compute_capabilities=("8.7",))
    with pytest.raises(BuildError, match=r"this version builds for .*8\.6.* got 8\.7"):
        build_engine(model, tmp_path / "a.engine", config)


def test_the_standard_nms_is_refused_before_the_build(own_model: Path) -> None:
    manifest = edgerpn.manifest.read(own_model)
    proposals = dataclasses.replace(manifest.proposals, nms="standard")
    edgerpn.manifest.write(manifest.replace(target="onnxruntime", proposals=proposals), own_model)
    with pytest.raises(BuildError, match=r"exported for onnxruntime with the standard NMS.*--target tensorrt-rtx"):
        build_engine(own_model, own_model.with_name("a.engine"), RTX)
    assert not [*own_model.parent.glob("a.*")]


def test_options_that_the_library_lacks_are_refused_together(model: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(RTX, version_compatible=True, dla_core=0, batch=(1, 2, 2))
    with pytest.raises(BuildError) as caught:
        build_engine(model, tmp_path / "a.engine", config)
    for problem in ("version_compatible: ", "dla_core: ", "batch: the graph has a fixed batch of 1"):
        assert problem in str(caught.value)


def test_an_onnx_file_that_its_manifest_does_not_describe_is_refused(own_model: Path) -> None:
    whole = own_model.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged, words in ((whole[: len(whole) // 2], "truncated"), (bytes(flipped), "changed since export")):
        own_model.write_bytes(damaged)
        with pytest.raises(ArtifactMismatchError, match=rf"model\.onnx: {words}.*model\.json"):
            build_engine(own_model, own_model.with_name("a.engine"), RTX)
    assert not [*own_model.parent.glob("a.*")]


def test_a_damaged_onnx_file_with_a_manifest_of_its_own_is_refused_too(own_model: Path) -> None:
    manifest = edgerpn.manifest.read(own_model)
    own_model.write_bytes(own_model.read_bytes()[:-1000])
    edgerpn.manifest.write(manifest, own_model)
    with pytest.raises(EngineError, match=r"model\.onnx"):
        build_engine(own_model, own_model.with_name("a.engine"), RTX)
    assert not own_model.with_name("a.engine").exists()


def worker_failure(model: Path) -> str:
    """The error of the child process for a file that the parent would refuse before."""
    request = {
        "command": "build",
        "library": "tensorrt-rtx",
        "onnx": str(model),
        "plan": str(model.with_name("a.engine")),
        "timing_cache": None,
        "has_gpu": False,
        "config": settings.to_dict(RTX),
    }
    outcome = run_worker(request, on_event=lambda _: None, tick=lambda: None)
    assert outcome.status == 1
    assert not model.with_name("a.engine").exists()
    return outcome.describe_end()


def test_the_child_process_refuses_other_files_and_foreign_graphs(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph at all")
    assert "not an ONNX file, or damaged" in worker_failure(tmp_path / "text.onnx")
    shape = [1, 8]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert "expected one uint8 input (N, H, W, 3 or 4)" in worker_failure(tmp_path / "foreign.onnx")


def test_a_manifest_that_is_missing_edited_or_of_a_newer_schema_has_its_own_error(own_model: Path) -> None:
    sidecar = own_model.with_suffix(".json")
    values = json.loads(sidecar.read_text())
    output = own_model.with_name("a.engine")
    sidecar.write_text(json.dumps({**values, "schema": 99}))
    with pytest.raises(ManifestVersionError, match="schema 99"):
        build_engine(own_model, output, RTX)
    sidecar.write_text(json.dumps({**values, "opset": "eighteen"}))
    with pytest.raises(ManifestError, match="opset"):
        build_engine(own_model, output, RTX)
    sidecar.unlink()
    with pytest.raises(ManifestError, match=r"the manifest of model\.onnx is missing"):
        build_engine(own_model, output, RTX)


def test_golden_frames_of_another_file_are_refused_and_no_engine_is_left(own_model: Path) -> None:
    path = edgerpn.golden.golden_path(own_model)
    frames = edgerpn.golden.read(own_model, edgerpn.manifest.read(own_model))
    edgerpn.golden.write(dataclasses.replace(frames, scores=frames.scores * np.float32(0.5)), own_model)
    with pytest.raises(ArtifactMismatchError, match="golden frames, but not those that the manifest"):
        build_engine(own_model, own_model.with_name("a.engine"), RTX)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ManifestError, match=r"model\.golden\.npz: truncated or damaged"):
        build_engine(own_model, own_model.with_name("a.engine"), RTX)
    assert not own_model.with_name("a.engine").exists()
    assert not [*own_model.parent.glob(".*")]
