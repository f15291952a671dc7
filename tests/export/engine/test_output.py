"""The files of a build appear together, also after a crash, a full disk or a lost report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerpn.artifact
import edgerpn.golden
import edgerpn.manifest
from edgerpn.errors import ArtifactMismatchError, MissingDependencyError
from edgerpn.export.engine import output as build_output
from edgerpn.export.engine.libraries import BuildEnvironment, BuildMachine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.engine.report import BuildReport, report_path
from edgerpn.export.engine.trial import golden_parity, try_engine
from edgerpn.golden import Golden
from edgerpn.manifest import AnchorSpec, EngineSpec, InputSpec, Manifest, ProposalSpec, Provenance
from edgerpn.manifest.parts import ProfileSpec
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.tensorrt import compatibility

MACHINE = BuildMachine(platform="linux-x86_64", gpu="GPU", compute_capability="8.7", driver="12.6")
NAMES = ["a.engine", "a.engine.build.json", "a.engine.golden.npz", "a.engine.json"]


def make_manifest(name: str) -> Manifest:
    """The manifest of an engine of TensorRT 10.3."""
    return Manifest(
        name=name,
        kind="engine",
        target="tensorrt",
        opset=18,
        backbone="tiny",
        input=InputSpec(network_hw=(8, 8), mean_bgr=(0.0, 0.0, 0.0), std_bgr=(1.0, 1.0, 1.0)),
        anchors=AnchorSpec(strides_px=(8,), sizes_px=((16.0,),), ratios_hw=(1.0,)),
        proposals=ProposalSpec(
            num_proposals=2, pre_nms=4, nms="portable", nms_iou=0.7, nms_scope="all", score_threshold=0.0,
            min_size_px=0.0,
        ),
        provenance=Provenance(created="2026-01-01T00:00:00+00:00", checkpoint_sha256="0" * 64),
        engine=EngineSpec(
            library="tensorrt", library_version="10.3.0.26", compute_capabilities=("8.7",), platform="linux-x86_64",
            profile=ProfileSpec(min_batch=1, opt_batch=1, max_batch=1), build_s=1.0,
        ),
    )  # fmt: skip


def make_golden(value: float) -> Golden:
    boxes = np.full((1, 2, 4), value, np.float32) + np.array([0, 0, 4, 4], np.float32)
    return Golden(
        frames=np.zeros((1, 8, 8, 3), np.uint8),
        boxes=boxes,
        scores=np.array([[0.9, 0.5]], np.float32),
        count=np.array([2], np.int32),
    )


def make_onnx(folder: Path, value: float) -> tuple[Path, Manifest]:
    """A file with golden frames, of which only the bytes matter here."""
    folder.mkdir(exist_ok=True)
    model = folder / "model.onnx"
    model.write_bytes(b"graph %f" % value)
    manifest = make_manifest("model").replace(
        kind="onnx", engine=None, golden=edgerpn.golden.write(make_golden(value), model)
    )
    edgerpn.manifest.write(manifest, model)
    return model, edgerpn.manifest.read(model)


def make_report(onnx: Path, output: Path) -> BuildReport:
    environment = BuildEnvironment(library="tensorrt", version="10.3.0.26", cuda="12", machine=MACHINE)
    return BuildReport(onnx=onnx, engine=output, onnx_sha256="0", environment=environment, config=BuildConfig())


def deliver(
    folder: Path, name: str, value: float, said: list[str] | None = None, *, file_name: str = "a.engine"
) -> Path | None:
    """Delivers an engine called `name`, whose bytes and golden frames distinguish it from others."""
    model, onnx = make_onnx(folder / name, value)
    output = folder / "out" / file_name
    output.parent.mkdir(exist_ok=True)
    with edgerpn.artifact.staging(output, report_path) as staged:
        staged.write_bytes(name.encode())
        log = (said if said is not None else []).append
        return build_output.deliver(make_report(model, output), staged, make_manifest(name), onnx, log)


def loaded(folder: Path) -> tuple[str, bytes, float]:
    """Returns name, engine and first golden coordinate, as a loader reads them."""
    engine = folder / "out" / "a.engine"
    manifest = edgerpn.manifest.read(engine)
    return manifest.name, engine.read_bytes(), float(edgerpn.golden.read(engine, manifest).boxes[0, 0, 0])


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "out").iterdir())


def test_a_delivery_replaces_the_four_files_of_an_older_one(tmp_path: Path) -> None:
    deliver(tmp_path, "old", 1.0)
    assert deliver(tmp_path, "new", 2.0) == tmp_path / "out" / "a.engine.build.json"
    assert loaded(tmp_path) == ("new", b"new", 2.0)
    assert files(tmp_path) == NAMES


def test_the_temporary_name_of_an_artifact_is_utf_8(tmp_path: Path) -> None:
    with edgerpn.artifact.staging(tmp_path / os.fsdecode(b"caf\xe9.engine")) as staged:
        assert staged.parent == tmp_path
        assert re.fullmatch(r"\.caf\\xe9\.[0-9a-f]{8}\.engine", staged.name)


def test_a_name_as_long_as_the_files_beside_it_allow_is_delivered(tmp_path: Path) -> None:
    longest = f"{'a' * (255 - len('.engine.golden.npz'))}.engine"
    for name, value in (("old", 1.0), ("new", 2.0)):
        deliver(tmp_path, name, value, file_name=longest)
    assert files(tmp_path) == sorted(longest + name.removeprefix("a.engine") for name in NAMES)
    assert (tmp_path / "out" / longest).read_bytes() == b"new"


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("has_old", [True, False])
def test_a_file_that_cannot_be_renamed_leaves_everything_as_it_was(
    number: int, has_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_old:
        deliver(tmp_path, "old", 1.0)
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name in NAMES:
            calls.append(target)
            if len(calls) == number + 1:
                raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr("edgerpn.artifact.os.replace", replace)
    with pytest.raises(OSError, match="No space left"):
        deliver(tmp_path, "new", 2.0)
    assert files(tmp_path) == (NAMES if has_old else [])
    if has_old:
        assert loaded(tmp_path) == ("old", b"old", 1.0)


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_output as tests
real, calls = os.replace, []
def replace(source, target):
    if Path(target).name in tests.NAMES:
        calls.append(target)
        if len(calls) == {number}:
            os._exit(9)
    real(source, target)
os.replace = replace
tests.deliver(Path({folder!r}), "new", 2.0)
"""


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_crash_between_two_renames_leaves_a_complete_or_a_refused_set(number: int, tmp_path: Path) -> None:
    deliver(tmp_path, "old", 1.0)
    program = CRASH.format(tests=str(Path(__file__).parent), number=number, folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    try:
        found = loaded(tmp_path)
    except ArtifactMismatchError:
        assert number in (2, 3)  # golden frames, or engine too, are new already
    else:
        assert found == (("old", b"old", 1.0) if number == 1 else ("new", b"new", 2.0))


def test_a_report_that_cannot_be_written_does_not_undo_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(tmp_path, "old", 1.0)

    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BuildReport, "write", write)
    said: list[str] = []
    assert deliver(tmp_path, "new", 2.0, said) is None
    assert loaded(tmp_path) == ("new", b"new", 2.0)
    assert "No space left on device" in said[-1]
    assert files(tmp_path) == [name for name in NAMES if not name.endswith("build.json")]


def test_on_a_file_system_without_links_an_error_still_restores_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("edgerpn.artifact.os.link", link)
    for name in ("x", "y"):
        (tmp_path / name).write_text("old")
        (tmp_path / f"new-{name}").write_text("new")
    (tmp_path / "new-y").unlink()
    pairs = [(tmp_path / f"new-{name}", tmp_path / name) for name in ("x", "y")]
    with pytest.raises(FileNotFoundError):
        edgerpn.artifact.replace_together(pairs)
    assert sorted((file.name, file.read_text()) for file in tmp_path.iterdir()) == [("x", "old"), ("y", "old")]


def test_a_missing_package_leaves_the_engine_untried_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edgerpn.runtime.backends.tensorrt.cuda_bindings", "edgerpn.runtime.backends.tensorrt.cuda_pycuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("cuda", "cuda.bindings", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("edgerpn.runtime.backends.tensorrt.cuda_provider._devices", {})
    model, onnx = make_onnx(tmp_path / "in", 1.0)
    report = make_report(model, tmp_path / "a.engine")
    staged = tmp_path / ".a.engine"
    staged.write_bytes(b"plan")
    said: list[str] = []
    made = make_manifest("a")
    assert try_engine(report, staged, made, onnx, compare=None, log=said.append) == made
    assert said == report.notes
    assert said[0].startswith("the engine was not tried here: running an engine needs the Python package cuda-bindings")
    assert "pip install" in said[0]
    assert "\n" not in said[0]
    assert staged.read_bytes() == b"plan"


def test_a_package_found_missing_by_the_backend_leaves_the_engine_untried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_backend(*_: Any, **__: Any) -> None:
        raise MissingDependencyError("needs numpy2; pip install numpy2")

    monkeypatch.setattr("edgerpn.runtime.backends.open_backend.open_backend", open_backend)
    monkeypatch.setattr("edgerpn.export.engine.trial.open_device", lambda: None)
    model, onnx = make_onnx(tmp_path / "in", 1.0)
    staged = tmp_path / ".a.engine"
    staged.write_bytes(b"plan")
    said: list[str] = []
    report = make_report(model, tmp_path / "a.engine")
    try_engine(report, staged, make_manifest("a"), onnx, compare=None, log=said.append)
    assert said[0].startswith("the engine was not tried here: needs numpy2; pip install numpy2; try it on the device")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.engine", "in"]


def test_the_trial_of_a_version_compatible_engine_allows_its_code(
    bench: Any, make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = make_engine(tmp_path, version_compatible=True)
    bench.library.has_host_code = True
    host = compatibility.EngineHost(
        platform=compatibility.this_platform(), library=bench.library.opened(), device=bench.device
    )
    monkeypatch.setattr(compatibility, "query_machine", lambda *_, **__: host)
    monkeypatch.setattr("edgerpn.export.engine.trial.open_device", lambda: bench.device)
    made = edgerpn.manifest.read(staged)
    model, onnx = make_onnx(tmp_path / "in", 1.0)
    said: list[str] = []
    try_engine(make_report(model, tmp_path / "a.engine"), staged, made, onnx.replace(golden=None), compare=None,
               log=said.append)  # fmt: skip
    assert said[0].startswith("the engine loads here")
    assert bench.library.host_code_allowed == [True]


def test_the_agreement_on_golden_frames_counts_pairs_and_unmatched_proposals() -> None:
    golden = make_golden(0.0)
    exact = golden_parity(golden, golden.outputs, make_manifest("a"), batch=4)
    assert (exact.reference, exact.num_images, exact.batch_sizes) == ("golden frames", 1, (4,))
    assert (exact.num_matched, exact.num_boundary, exact.num_unexplained) == (2, 0, 0)
    assert (exact.min_iou, exact.max_score_difference) == (1.0, 0.0)
    boxes, scores = golden.boxes.copy(), golden.scores.copy()
    boxes[0, 0, 2] = 3.98  # IoU 0.995 with 4 px
    scores[0] = (0.8995, 0.1)  # the second one is beyond what a pair may differ by
    found = golden_parity(golden, Outputs(boxes, scores, golden.count), make_manifest("a"), batch=1)
    assert (found.num_matched, found.num_unexplained) == (1, 2)
    assert found.min_iou == pytest.approx(0.995, abs=1e-4)
    assert found.max_score_difference == pytest.approx(5e-4, rel=0.01)
