from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgerpn import golden, manifest
from edgerpn.__main__ import main
from edgerpn.errors import ExportError, ManifestError, SelfTestError
from edgerpn.export.onnx.frigate import raise_scores
from edgerpn.export.packages import smoke
from edgerpn.export.packages.package import TARGETS, package
from tests.support.classes import CLASS_NAMES
from tests.support.models import MakeModel, rename_in_manifest, rename_tensors


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_smoke_test_of_a_bundle_passes_without_this_package(target: str, bundles: dict[str, Path]) -> None:
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('edgerpn', 'onnx', 'torch', 'cv2'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import runpy\n"
        "sys.argv[:] = ['smoke.py']\n"
        f"runpy.run_path({str(bundles[target] / 'smoke.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the golden frames gave the expected proposals\n"), done.stderr


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_bundle_has_a_page_of_commands(target: str, bundles: dict[str, Path], packed_model: Path) -> None:
    page = (bundles[target] / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# bright for {TARGETS[target]}\n")
    assert "96 x 160 pixels" in page
    assert str(manifest.read(packed_model).provenance.onnx_sha256) in page
    assert "python smoke.py" in page
    assert ("this model is not square" in page) is (target == "frigate")


def test_the_smoke_test_finds_other_proposals(bundles: dict[str, Path], tmp_path: Path) -> None:
    for name in ("smoke.json", "model.onnx"):
        (tmp_path / name).write_bytes((bundles["frigate"] / name).read_bytes())
    with np.load(bundles["frigate"] / "smoke.npz") as arrays:
        changed: dict[str, Any] = dict(arrays)
    changed["boxes"] = changed["boxes"] + np.float32(9)
    changed["count"] = changed["count"] + np.array([0, 0, 1], np.int32)
    np.savez(tmp_path / "smoke.npz", **changed)
    assert smoke.check(tmp_path) == [
        "frame 0: 3 of 3 proposals have no counterpart",
        "frame 1: 7 of 7 proposals have no counterpart",
        "frame 2: 1 of 1 proposals have no counterpart",
    ]


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_smoke_test_finds_other_classes(target: str, make_packed: MakeModel, tmp_path: Path) -> None:
    folder = package(make_packed(batch=1, class_names=CLASS_NAMES), target, tmp_path / "bundle")
    assert smoke.check(folder) == []
    with np.load(folder / "smoke.npz") as arrays:
        expected: dict[str, Any] = dict(arrays)
    # Frigate's rows have no score of the class.
    assert set(expected) == {"frames", "boxes", "scores", "count", "labels"} | (
        {"class_scores"} if target != "frigate" else set()
    )
    for name in expected.keys() & {"labels", "class_scores"}:
        np.savez(folder / "smoke.npz", **{**expected, name: expected[name] + expected[name].dtype.type(1)})
        assert smoke.check(folder) == [
            f"frame 0: 3 of 3 proposals have other {name}",
            f"frame 1: 7 of 7 proposals have other {name}",
        ]


def test_a_graph_with_other_names_is_refused_where_a_program_asks_for_ours(packed_model: Path, tmp_path: Path) -> None:
    file, described = tmp_path / packed_model.name, manifest.read(packed_model)
    rename_tensors(packed_model, file)
    shutil.copy(golden.golden_path(packed_model), tmp_path)
    # In another order too: the manifest has the names.
    proto = onnx.load(file)
    proto.graph.output.append(proto.graph.output.pop(0))
    onnx.save(proto, file)
    manifest.write(rename_in_manifest(described), file)
    message = "its outputs are output_0, output_1, output_2, and .* asks for boxes, scores, count; package the file"
    with pytest.raises(ExportError, match=message):
        package(file, "deepstream", tmp_path / "deepstream")
    for target in ("frigate", "triton"):
        assert smoke.check(package(file, target, tmp_path / target)) == []


def test_a_bundle_that_fails_its_smoke_test_is_not_written(
    packed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "check", lambda folder: ["frame 0: 1 of 1 proposals have no counterpart"])
    with pytest.raises(SelfTestError, match=r"bright\.onnx: the bundle for Frigate does not work: frame 0"):
        package(packed_model, "frigate", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", list(TARGETS))
def test_golden_frames_without_a_proposal_make_no_bundle(target: str, packed_model: Path, tmp_path: Path) -> None:
    file, described = tmp_path / packed_model.name, manifest.read(packed_model)
    shutil.copy(packed_model, file)
    found = golden.read(packed_model, described)
    last = golden.Golden(frames=found.frames[2:], **found.outputs.each(lambda array: array[2:]).present)
    manifest.write(described.replace(golden=golden.write(last, file)), file)
    with pytest.raises(SelfTestError, match="does not work: none of the golden frames has a proposal"):
        package(file, target, tmp_path / "bundle")


def test_what_cannot_be_packaged_is_refused(packed_model: Path, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name in ("full", "full/file"):
        with pytest.raises(ExportError, match="expected a new or an empty folder"):
            package(packed_model, "frigate", tmp_path / name)
    with pytest.raises(ExportError, match=r"best\.pt: expected an exported ONNX file"):
        package("best.pt", "frigate", tmp_path / "out")
    with pytest.raises(ManifestError, match="names no golden frames"):
        package(model_path, "frigate", tmp_path / "out")


def test_the_command_writes_a_bundle(packed_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["package", str(packed_model), "--for", "frigate", "-o", str(tmp_path / "out")]
    assert main([*words, "--min-score", "1"]) == 2
    assert "min_score: expected more than 0 and less than 1" in capsys.readouterr().err
    assert main([*words, "--min-score", "0.3"]) == 0
    assert "the smoke test passed on 3 golden frames" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "smoke.npz") as arrays:
        assert arrays["scores"][0, 0] == raise_scores(np.array([0.9], np.float32), 0.3)[0]
