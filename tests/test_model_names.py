"""Wherever a command takes a model file, it takes the name of an installed model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn import files
from edgerpn.__main__ import main
from edgerpn.errors import BuildError, EngineLoadError
from edgerpn.export.engine.build import build_engine
from edgerpn.runtime import load

Paint = Callable[..., npt.NDArray[np.uint8]]

COMMANDS = [
    "run street photos -o out",
    "run street photos --jsonl street.json",
    "predict street photos -o out",
    "bench street --images photos -o street.json --set warm_up_s=0.1 --set serial_s=0.1 --set throughput_s=0.1",
    "eval street --data data -o street.json",
    "inspect street",
    "check street --target onnxruntime -o street.json",
    "check street --against street --images photos",
]


@pytest.fixture
def folder(tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with photographs and a data set of the same."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "data").mkdir()
    images, annotations = [], []
    for number in (1, 2):
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), paint(96, 160, box=(8, 16, 48, 56)))
        images.append({"id": number, "file_name": f"{number}.png", "width": 160, "height": 96})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 16, 40, 40]})
    (tmp_path / "data" / "images").symlink_to(tmp_path / "photos")
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "data" / "val.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("street", "folder")
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_takes_the_name(line: str) -> None:
    assert main(line.split()) == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", [*COMMANDS, "doctor stream rtsp://127.0.0.1:1/none --model street"])
def test_every_command_says_that_the_model_is_not_installed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    assert "error: street: no such file, and a model of this name is not installed; " in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_outputs_do_not_overwrite_an_installed_model(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = street.read_bytes()
    for line in ("run street photos --jsonl FILE", "bench street -o FILE", "eval street --data data -o FILE"):
        for file in (street, street.with_suffix(".json")):
            assert main(line.replace("FILE", str(file)).split()) == 1
            assert "overwritten" in capsys.readouterr().err
    assert street.read_bytes() == before


def test_outputs_name_the_file(street: Path, folder: Path) -> None:
    assert main(["predict", "street", "photos", "-o", "out"]) == 0
    plan = json.loads((folder / "out" / "predict.json").read_text())
    assert plan["model"] == {"name": "bright.onnx", "sha256": files.sha256(street)}


def test_loading_takes_the_name(street: Path, paint: Paint) -> None:
    with load("street") as model, load(street) as same:
        frame = paint(96, 160, box=(8, 16, 48, 56), count=3)
        assert model(frame).boxes.tolist() == same(frame).boxes.tolist()
        assert len(model(frame)) == 3


@pytest.mark.usefixtures("street")
def test_an_engine_is_built_from_the_file_of_the_name(tmp_path: Path) -> None:
    # The error of the step after the search: no engine has such a file name.
    with pytest.raises(BuildError, match=r"model\.txt"):
        build_engine("street", tmp_path / "model.txt")
    with pytest.raises(EngineLoadError, match="avenue: no such file"):
        build_engine("avenue", tmp_path / "model.engine")


def test_a_run_by_name_needs_neither_torch_nor_onnx(street: Path, video_path: Path, tmp_path: Path) -> None:
    code = """
import sys
from edgerpn.__main__ import main
status = main(["run", "street", *sys.argv[1:]])
print(sorted(name for name in ("torch", "onnx", "onnxscript", "matplotlib") if name in sys.modules))
sys.exit(status)
"""
    words = [sys.executable, "-c", code, str(video_path), "-o", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "proposals.jsonl").is_file()
