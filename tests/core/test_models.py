from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgerpn
from edgerpn.errors import EngineLoadError
from edgerpn.models import find_model


@pytest.mark.usefixtures("street")
@pytest.mark.parametrize("text", ["street.onnx", "./street", "RUN/street", "street.engine", "/no/where", "", "-street"])
def test_a_text_that_is_no_name_is_a_path_whether_or_not_it_exists(text: str) -> None:
    assert find_model(text) == Path(text)


def test_a_name_is_the_file_of_the_package_that_brings_it(street: Path) -> None:
    assert find_model("street") == find_model(Path("street")) == street


def test_a_file_wins_over_a_name_and_a_name_over_a_folder(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("street").mkdir()
    assert find_model("street") == street
    Path("street").rmdir()
    Path("street").write_bytes(b"a model without a suffix")
    assert find_model("street") == Path("street")
    # The backend that opens a folder names the files in it.
    Path("RUN").mkdir()
    assert find_model("RUN") == Path("RUN")


def test_the_first_package_on_the_path_wins(street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "first" / "alley-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: alley\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgerpn.models]\nstreet = alley:STREET\n")
    other = tmp_path / "first" / "alley.onnx"
    other.touch()
    (tmp_path / "first" / "alley.py").write_text(f"STREET = {str(other)!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    importlib.invalidate_caches()
    assert find_model("street") == other
    sys.modules.pop("alley")


@pytest.mark.usefixtures("street")
def test_an_unknown_name_lists_those_that_are_installed() -> None:
    with pytest.raises(EngineLoadError) as caught:
        find_model("avenue")
    text = str(caught.value)
    assert text.startswith("avenue: no such file, and a model of this name is not installed; installed: ")
    assert "street" in text


@pytest.mark.usefixtures("street")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nameless", r"nameless: streetmodels:NOTHING of streetmodels 1\.2 does not import: AttributeError: .*NOTHING"),
        ("wrong", r"wrong: streetmodels:Path of streetmodels 1\.2: expected the path of a model file, got <class"),
        ("gone", r"gone: streetmodels:GONE of .*: expected the path of a model file, got .*/gone'\); install .* again"),
    ],
)
def test_a_broken_package_is_named(name: str, message: str) -> None:
    with pytest.raises(EngineLoadError, match=message):
        find_model(name)


def bare(code: str, folder: Path) -> str:
    """Runs code with the standard library and edgerpn, and no other package."""
    (folder / "edgerpn").symlink_to(Path(edgerpn.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("has_folder", [False, True])
def test_without_the_package_the_error_has_the_line_that_installs_it(tmp_path: Path, has_folder: bool) -> None:
    if has_folder:  # as in a clone of edgerpn
        (tmp_path / "general").mkdir()
    code = """
from edgerpn.errors import EngineLoadError
from edgerpn.models import find_model
try:
    print("found", find_model("general"))
except EngineLoadError as error:
    print(error)
"""
    assert bare(code, tmp_path) == (
        "general: no such file, and a model of this name is not installed; installed: none. general and "
        "general-384x640 come with the package edgerpn-general; in a clone of edgerpn: pip install ./general"
    )


def test_a_path_does_not_import_what_reads_the_packages(tmp_path: Path) -> None:
    code = """
import sys
from edgerpn.models import find_model
find_model("model.onnx")
print("importlib.metadata" in sys.modules)
"""
    assert bare(code, tmp_path) == "False"
