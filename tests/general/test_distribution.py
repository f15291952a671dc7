"""The distribution edgerpn-general: its wheel, and its models as they run from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgerpn
from benchmarks.general.release import SIZES_HW, WEIGHTS, text_of
from edgerpn import files
from edgerpn import manifest as manifests
from edgerpn.models import GENERAL_MODELS, find_model
from edgerpn.runtime import load
from tests.support.wheels import build_wheel

MODEL_FILES = {f"{name}{suffix}" for name in GENERAL_MODELS for suffix in (".onnx", ".json", ".golden.npz")}

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(root / "general", tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def site(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's folder, first on the path of this process and of those that it starts."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delitem(sys.modules, "edgerpn_general", raising=False)
    yield site / "edgerpn_general"
    sys.modules.pop("edgerpn_general", None)


def info(wheel: zipfile.ZipFile, name: str) -> str:
    (found,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(found).decode()


def test_the_wheel_holds_the_models_and_the_card_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {f"edgerpn_general/{name}" for name in {*MODEL_FILES, "CARD.md", "__init__.py"}}


def test_the_wheel_carries_licence_card_and_names_and_requires_nothing(wheel: zipfile.ZipFile, root: Path) -> None:
    assert info(wheel, "licenses/LICENSE") == (root / "LICENSE").read_text()
    metadata = info(wheel, "METADATA")
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "Requires-Dist" not in metadata
    assert (root / "general" / "edgerpn_general" / "CARD.md").read_text() in metadata
    version = tomllib.loads((root / "general" / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nVersion: {version}\n" in metadata
    assert re.findall(r"^([\w-]+) = ", info(wheel, "entry_points.txt"), re.MULTILINE) == list(GENERAL_MODELS)


@pytest.mark.parametrize("name", GENERAL_MODELS)
def test_the_card_has_the_hash_of_each_model(wheel: zipfile.ZipFile, installed: Path, name: str) -> None:
    card = wheel.read("edgerpn_general/CARD.md").decode()
    (row,) = [line for line in card.splitlines() if f"`{name}.onnx`" in line and line.startswith("|")]
    assert files.sha256(installed / f"{name}.onnx") in row


@pytest.mark.parametrize("name", GENERAL_MODELS)
def test_a_model_is_the_one_of_its_manifest_and_repeats_its_golden_frames(installed: Path, name: str) -> None:
    file = find_model(name)
    assert file == installed / f"{name}.onnx"
    manifest = manifests.read(file)
    assert manifest.name == name
    assert manifest.provenance.onnx_sha256 == files.sha256(file)
    assert manifest.input.network_hw == SIZES_HW[name]
    assert (manifest.target, manifest.precision, manifest.input.batch) == ("onnxruntime", "fp32", None)
    assert manifest.proposals.num_proposals == 100
    with load(name, self_test=True) as model:
        assert model.manifest == manifest


def test_both_sizes_are_exports_of_the_weights_that_training_starts_from(installed: Path) -> None:
    described = [manifests.read(installed / f"{name}.onnx") for name in GENERAL_MODELS]
    assert {manifest.provenance.checkpoint_sha256 for manifest in described} == {files.sha256(WEIGHTS)}


@pytest.mark.parametrize("name", sorted(MODEL_FILES))
def test_no_file_holds_a_path_of_the_machine_that_made_it(installed: Path, name: str) -> None:
    assert re.findall(r"(?<![\w/.:])/[\w.-]+/[\w.-]+", text_of(installed / name)) == []


def test_a_run_by_name_finds_proposals_and_needs_neither_torch_nor_onnx(
    installed: Path, video_path: Path, tmp_path: Path
) -> None:
    code = """
import sys
from edgerpn.__main__ import main
status = main(["run", "general", *sys.argv[1:]])
print(sorted(name for name in ("torch", "onnx", "onnxscript", "matplotlib") if name in sys.modules))
sys.exit(status)
"""
    words = [sys.executable, "-c", code, str(video_path), "-o", str(tmp_path / "out"), "--max-frames", "3"]
    (tmp_path / "general").mkdir()  # as in a clone of the repository
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert str(installed / "general.onnx") in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    records = [json.loads(line) for line in (tmp_path / "out" / "proposals.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert all(record["proposals"] for record in records)


def test_a_device_finds_the_model_with_the_standard_library_alone(site: Path, tmp_path: Path) -> None:
    (tmp_path / "edgerpn").symlink_to(Path(edgerpn.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{site}"}
    code = "from edgerpn.models import find_model; print(find_model('general'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(site / "edgerpn_general" / "general.onnx"), done.stderr
