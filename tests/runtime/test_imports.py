"""The runtime imports few packages, and none that a device lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgerpn.runtime

_HEAVY = ["cv2", "matplotlib", "numpy", "onnx", "onnxruntime", "torch", "torchvision", "tritonclient"]


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_runtime_imports_no_heavy_package() -> None:
    code = f"""
import json, sys
import edgerpn.runtime
import edgerpn.runtime.cli
print(json.dumps([name for name in {_HEAVY} if name in sys.modules]))
"""
    assert json.loads(python(code)) == []


def test_everything_runs_where_torch_onnx_and_matplotlib_do_not_import(
    model_path: Path, video_path: Path, tmp_path: Path
) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "matplotlib"):
    sys.modules[name] = None
from edgerpn.__main__ import main
sys.exit(main(["run", *sys.argv[1:]]))
"""
    out = tmp_path / "out"
    assert "40 frames" in python(code, str(model_path), str(video_path), "--out", str(out))
    assert (out / "annotated.mp4").stat().st_size > 0


def test_a_file_imports_nothing_of_models_on_servers(model_path: Path) -> None:
    code = """
import sys
from edgerpn.runtime import load
load(sys.argv[1])
print([name for name in sys.modules if ".served." in name or name == "edgerpn.runtime.endpoint"])
"""
    assert python(code, str(model_path)).strip() == "['edgerpn.runtime.backends.served.config']"


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert edgerpn.runtime.__all__ == sorted(edgerpn.runtime.__all__)
    for name in edgerpn.runtime.__all__:
        assert getattr(edgerpn.runtime, name) is not None
        assert name in dir(edgerpn.runtime)
    with pytest.raises(AttributeError, match="Modell"):
        edgerpn.runtime.Modell  # noqa: B018


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("cv2", ["edgerpn[opencv-headless]", "--system-site-packages", "Jetson"]),
        ("onnxruntime", ["edgerpn[onnxruntime]"]),
    ],
)
def test_a_missing_package_says_how_to_get_it(module: str, texts: list[str], model_path: Path) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from edgerpn.errors import MissingDependencyError
from edgerpn.runtime import load
try:
    load(sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""
    message = python(code, str(model_path))
    for text in texts:
        assert text in message
