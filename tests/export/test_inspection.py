"""`edgerpn inspect` of engines and ONNX files: the description, the checks of this machine, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from edgerpn import manifest as manifests
from edgerpn.__main__ import main
from edgerpn.errors import ArtifactMismatchError, ManifestError
from edgerpn.export.inspection import inspect_artifact
from edgerpn.runtime.backends.tensorrt import compatibility

MakeModel = Callable[..., Path]


@pytest.fixture
def with_gpu(standin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with TensorRT 10.3.0.26 and a GPU of compute capability 8.7."""
    device = standin.HostDevice()
    library = standin.Library(device).opened()
    host = compatibility.EngineHost(platform=compatibility.this_platform(), library=library, device=device)
    monkeypatch.setattr(compatibility, "query_machine", lambda spec: host)


@pytest.mark.usefixtures("with_gpu")
def test_an_engine_that_can_run_gives_status_zero(
    make_engine: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_engine(tmp_path)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "  name: bright\n" in printed
    assert "ok       library\n         expected tensorrt 10.3.0.26\n" in printed
    assert printed.endswith("bright.engine: can run here\n")
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["manifest"]["name"], report["can_run_here"]) == ("bright", True)
    assert {check["verdict"] for check in report["checks"]} == {"ok"}
    assert set(report["checks"][0]) == {"key", "expected", "found", "verdict", "advice"}


def test_without_library_and_gpu_an_engine_gives_status_one_and_says_why(
    make_engine: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "cuda.bindings", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "edgerpn.runtime.backends.tensorrt.cuda_bindings", raising=False)
    path = make_engine(tmp_path, cuda="12.6")
    assert main(["inspect", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "no       library" in printed
    assert "not installed here" in printed
    assert "none: running an engine needs the Python package cuda-bindings" in printed.replace("\n" + " " * 18, " ")
    assert printed.endswith("cannot run here because of: library, GPU; unknown: driver\n")
    assert main(["inspect", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["can_run_here"] is False


@pytest.mark.usefixtures("with_gpu")
def test_a_changed_engine_is_described_and_cannot_run(
    make_engine: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_engine(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert main(["inspect", str(path)]) == 1
    assert capsys.readouterr().out.endswith("bright.engine: cannot run here because of: file (sha256)\n")


def test_an_onnx_file_is_described_and_onnx_runtime_looked_for(make_model: MakeModel, tmp_path: Path) -> None:
    report = inspect_artifact(make_model(tmp_path))
    assert report["inputs"] == ["frames uint8 [1, 96, 160, 3]"]
    assert (report["nodes"] > 20, report["gflops"], report["manifest"]["kind"]) == (True, 0.0, "onnx")
    (check,) = report["checks"]
    assert (check["key"], check["verdict"]) == ("library", "ok")
    assert "ONNX Runtime" in check["found"]
    assert "CPU" in check["found"]


@pytest.mark.parametrize("damage", ["a rank that cannot be", "a type that does not exist"])
def test_a_damaged_file_without_a_hash_is_described_as_far_as_it_goes(
    damage: str, make_model: MakeModel, tmp_path: Path
) -> None:
    path = make_model(tmp_path, has_sidecar=False)
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("MatMul", ["boxes", "boxes"], ["product"]))
    if damage == "a rank that cannot be":
        model.graph.output[0].type.tensor_type.shape.dim.pop()
    else:
        model.graph.output[0].type.tensor_type.elem_type = 99
    path.write_bytes(model.SerializeToString())
    report = inspect_artifact(path)
    assert report["gflops"] is None or report["gflops"] >= 0
    assert main(["inspect", str(path)]) == 0


def test_a_device_without_torch_and_onnx_inspects_engines_and_onnx_files(
    make_engine: MakeModel, make_model: MakeModel, tmp_path: Path
) -> None:
    engine, model = make_engine(tmp_path), make_model(tmp_path)
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'onnxruntime', 'cv2'): sys.modules[name] = None\n"
        "from edgerpn.__main__ import main\n"
        "print('\\nstatus', main(['inspect', sys.argv[1]]), main(['inspect', sys.argv[2]]))"
    )
    words = [sys.executable, "-c", code, str(engine), str(model)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "status 1 0" in done.stdout
    assert "bright.onnx: cannot run here because of: library" in done.stdout
    assert "pip install 'edgerpn[onnxruntime]'" in " ".join(done.stdout.split())


def test_anything_but_a_model_file_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("text")
    for name, expected in {
        "absent": "no such file",
        "README.md": "expected a checkpoint, ONNX file or engine (.pt, .safetensors, .onnx, .engine, .plan)",
        "": "expected a checkpoint, ONNX file or engine",
    }.items():
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert f"error: {tmp_path / name}: {expected}" in capsys.readouterr().err


def test_files_that_are_missing_or_changed_are_errors(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ManifestError, match=r"absent\.engine: the engine is missing"):
        inspect_artifact(tmp_path / "absent.engine")
    with pytest.raises(ManifestError, match=r"absent\.onnx: no such file"):
        inspect_artifact(tmp_path / "absent.onnx")
    model = make_model(tmp_path)
    manifests.write(manifests.read(model), model)
    model.write_bytes(model.read_bytes() + b"\x0a\x00")
    with pytest.raises(ArtifactMismatchError, match=r"bright\.onnx"):
        inspect_artifact(model)
    model.rename(tmp_path / "bright.engine")
    manifests.manifest_path(model).rename(tmp_path / "bright.engine.json")
    assert main(["inspect", str(tmp_path / "bright.engine")]) == 1
    assert "its manifest describes onnx, not an engine" in capsys.readouterr().err
