"""Golden frames at load, and engines that are built again where they cannot run."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn import golden
from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, ManifestError, SelfTestError
from edgerpn.machine import CHILD_MARK, module_command
from edgerpn.runtime import load
from edgerpn.runtime.backends import open_backend as opening
from edgerpn.runtime.backends.tensorrt import backend as tensorrt_backend
from edgerpn.runtime.backends.tensorrt import rebuild
from edgerpn.runtime.model import run_self_test

MakeModel = Callable[..., Path]


@pytest.fixture
def with_golden(make_model: MakeModel, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path) -> Path:
    """A model with golden frames beside it."""
    path = make_model(tmp_path, batch=None)
    frames = np.stack([paint(96, 160, box=(5, 10, 60, 70), count=3), paint(96, 160, box=(8, 10, 80, 70), count=5)])
    with load(path, threads=1) as model:
        outputs = model.backend.infer(frames)
    spec = golden.write(golden.Golden(frames=frames, **outputs.present), path)
    manifests.write(manifests.read(path).replace(golden=spec), path)
    return path


def write_changed(path: Path, **changes: Any) -> None:
    """Writes the golden frames of a model again, with some arrays changed, and a manifest that fits."""
    values = golden.read(path, manifests.read(path))
    arrays = {name: getattr(values, name) for name in ("frames", "boxes", "scores", "count")} | changes
    spec = golden.write(golden.Golden(**arrays), path)
    manifests.write(manifests.read(path).replace(golden=spec), path)


def test_a_model_that_returns_the_expected_proposals_loads(with_golden: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), load(with_golden, threads=1, self_test=True) as model:
        assert model.manifest.golden is not None
    assert "gave the expected proposals" in caplog.text


def test_a_model_that_returns_other_proposals_is_refused(with_golden: Path) -> None:
    boxes = golden.read(with_golden, manifests.read(with_golden)).boxes + np.float32(30)
    write_changed(with_golden, boxes=boxes)
    with pytest.raises(SelfTestError, match=r"bright\.onnx on ONNX Runtime .*\(CPU\): golden frame 0"):
        load(with_golden, threads=1, self_test=True)
    load(with_golden, threads=1).close()


def test_golden_frames_without_a_proposal_prove_nothing(
    make_model: MakeModel, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    path = make_model(tmp_path, batch=None)
    frames = paint(96, 160, box=(5, 10, 60, 70), count=0)[None]
    with load(path, threads=1) as model:
        spec = golden.write(golden.Golden(frames=frames, **model.backend.infer(frames).present), path)
        manifests.write(model.manifest.replace(golden=spec), path)
    with pytest.raises(SelfTestError, match=r"\(CPU\): none of the golden frames has a proposal.*; export the model"):
        load(path, threads=1, self_test=True)


def with_bit(data: bytes, *, entry_byte: int, bit: int) -> bytes:
    """The bytes of a zip with one bit of its directory's first entry changed."""
    place = data.index(b"PK\x01\x02") + entry_byte
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def an_array(_: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def without_a_bracket(data: bytes) -> bytes:
    """The bytes of a zip whose arrays lack a bracket in their headers."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b")", b" ", 1))
    return changed.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        without_a_bracket,
        an_array,
        functools.partial(with_bit, entry_byte=8, bit=0),
        functools.partial(with_bit, entry_byte=10, bit=1),
    ],
    ids=[
        "cut off",
        "a header without a bracket",
        "an .npy file",
        "encrypted by a wrong bit",
        "compressed by a wrong bit",
    ],
)
def test_damaged_golden_frames_are_one_clear_error(damage: Callable[[bytes], bytes], with_golden: Path) -> None:
    file = golden.golden_path(with_golden)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ManifestError, match=r"bright\.golden\.npz: truncated or damaged"):
        load(with_golden, threads=1, self_test=True)


def test_a_model_without_golden_frames_cannot_test_itself(model_path: Path) -> None:
    with pytest.raises(ManifestError, match="names no golden frames"):
        load(model_path, threads=1, self_test=True)


def test_the_command_tests_itself_first(
    with_golden: Path, video_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgerpn.__main__ import main

    words = ["run", str(with_golden), str(video_path), "--max-frames", "2", "--self-test"]
    assert main(words) == 0
    write_changed(with_golden, count=np.ones(2, np.int32))
    capsys.readouterr()
    assert main(words) == 1
    assert "golden frame 0" in capsys.readouterr().err


def test_an_engine_tests_itself_through_its_graphs(
    with_golden: Path, standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    spec = manifests.read(with_golden).golden
    path = make_engine(tmp_path)
    manifests.write(manifests.read(path).replace(golden=spec), path)
    device = standin.HostDevice()
    backend = tensorrt_backend.TensorRtBackend(path, library=standin.Library(device).opened(), device=device)
    run_self_test(path, backend)
    assert "launch_graph" in device.calls
    backend.close()


@pytest.fixture
def on_standin(standin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the loader find the stand-in as library and GPU, and records the builds that are started."""
    from edgerpn.runtime.backends.tensorrt import compatibility

    device = standin.HostDevice()
    library = standin.Library(device)
    found = compatibility.EngineHost(platform=compatibility.this_platform(), library=library.opened(), device=device)
    monkeypatch.setattr(compatibility, "query_machine", lambda spec, **_: found)
    return SimpleNamespace(device=device, library=library)


def test_a_file_called_engine_is_run_by_tensorrt(on_standin: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(tmp_path)
    with load(path, threads=3) as model:
        assert model.backend.name == "TensorRT 10.3.0.26 (Stand-in, stand-in)"
        assert not model.backend.is_cpu
        assert model.backend.frames_in_flight == 2
    with pytest.raises(EngineLoadError, match="providers are for ONNX Runtime"):
        load(path, providers=["cuda"])


def test_an_engine_streams_a_video(on_standin: Any, make_engine: MakeModel, tmp_path: Path, video_path: Path) -> None:
    with load(make_engine(tmp_path, batch=1)) as model:
        results = list(model.stream(video_path))
    assert [len(result.proposals) for result in results] == [index % 4 for index in range(40)]


def test_a_mismatch_fails_unless_rebuilding_is_allowed(
    on_standin: Any,
    make_engine: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = make_engine(tmp_path, compute_capabilities=("8.9",))
    with pytest.raises(ArtifactMismatchError, match=r"GPU: expected compute capability 8\.9, found Stand-in"):
        load(path)
    commands: list[list[str]] = []

    def build(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(words)
        make_engine(tmp_path)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr("edgerpn.runtime.backends.tensorrt.rebuild.subprocess.run", build)
    with load(path, on_mismatch="rebuild") as model:
        assert model.manifest.kind == "engine"
    (words,) = commands
    assert words[:4] == module_command("edgerpn")
    assert words[4:] == [
        "build", str(tmp_path / "source.onnx"), "-o", str(path), "--backend", "tensorrt", "--set", "batch=[1, 2, 4]"
    ]  # fmt: skip
    assert "building it again from source.onnx (GPU: expected compute capability 8.9" in caplog.text


def test_the_command_repeats_the_options_of_the_engine(make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(
        tmp_path, batch=1, library="tensorrt-rtx", compute_capabilities=("8.6", "12.0"), workspace_mib=64,
        optimization_level=2, tf32=True, dla_core=0, version_compatible=True, hardware_compatible=True,
    )  # fmt: skip
    words = rebuild.command(Path("source.onnx"), path, manifests.read(path), "8.9")
    assert " ".join(words[words.index("--backend") :]) == (
        "--backend tensorrt-rtx --compute-capability 8.9 --compute-capability 8.6 --compute-capability 12.0 "
        "--set workspace_mib=64 --set optimization_level=2 --set dla_core=0 --set tf32=true "
        "--version-compatible --hardware-compatible"
    )


def test_without_the_onnx_file_nothing_can_be_rebuilt(on_standin: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(tmp_path, compute_capabilities=("8.9",))
    (tmp_path / "source.onnx").write_bytes(b"another model")
    with pytest.raises(EngineLoadError, match=r"(?s)cannot be built again: the ONNX file .* is not in .*8\.9"):
        load(path, on_mismatch="rebuild")


def test_a_build_that_fails_shows_its_last_lines(on_standin: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(tmp_path, compute_capabilities=("8.9",))
    # The real command: TensorRT is not installed, or the file is not a model of edgerpn; both are errors.
    with pytest.raises(
        EngineLoadError, match=r"(?s)`edgerpn build` ended with status [12]:\n  .*error: .*started because"
    ) as failed:
        load(path, on_mismatch="rebuild")
    assert "is another program" not in str(failed.value)


def test_a_program_in_place_of_python_is_one_error(
    on_standin: Any, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(tmp_path, compute_capabilities=("8.9",))
    with monkeypatch.context() as patch:
        # As in the second program, which the first one has started in place of Python.
        patch.setenv(CHILD_MARK, "1")
        with pytest.raises(EngineLoadError, match=r"cannot be built again: .* was itself started to run a module"):
            load(path, on_mismatch="rebuild")
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(EngineLoadError, match=r"(?s)cannot be built again: sys\.executable is empty;.*8\.9"):
        load(path, on_mismatch="rebuild")


def test_only_two_reactions_to_a_mismatch_are_accepted(model_path: Path) -> None:
    with pytest.raises(ValueError, match="on_mismatch: expected fail or rebuild, got 'ignore'"):
        opening.open_backend(model_path, on_mismatch="ignore")  # type: ignore[arg-type]
