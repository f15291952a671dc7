from __future__ import annotations

import importlib.machinery
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgerpn
from tests.support.wheels import build_wheel, tracked_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = {
    "core": "edgerpn",
    "train": "edgerpn/train",
    "export": "edgerpn/export",
    "runtime": "edgerpn/runtime",
    "batch": "edgerpn/batch",
    "demo": "edgerpn/demo",
}
"""Folder in the repository -> folder in the wheel."""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(root, tmp_path_factory.mktemp("built"))


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_nothing_else(
    root: Path, wheel: zipfile.ZipFile
) -> None:
    expected = set()
    for name in tracked_files(root):
        folder, _, rest = name.partition("/")
        if folder in PACKAGES:
            expected.add(f"{PACKAGES[folder]}/{rest}")
    assert len(expected) > 20
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_wheel_carries_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    info = f"edgerpn-{edgerpn.__version__}.dist-info"
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    assert b"edgerpn = edgerpn.__main__:main" in wheel.read(f"{info}/entry_points.txt")


def test_the_version_is_written_in_one_place(root: Path, wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(f"edgerpn-{edgerpn.__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {edgerpn.__version__}\n" in metadata
    version = re.compile(rf"(?<![\d.]){re.escape(edgerpn.__version__)}(?![\d.])")
    holders = [
        name
        for name in tracked_files(root)
        if name.partition("/")[0] in PACKAGES or name == "pyproject.toml"
        # Weights name the version that wrote them.
        if not name.endswith(".safetensors")
        if version.search((root / name).read_text(encoding="utf-8"))
    ]
    assert holders == ["core/__init__.py"]


def test_a_plain_install_asks_for_numpy_alone(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(f"edgerpn-{edgerpn.__version__}.dist-info/METADATA").decode()
    plain = [line for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE) if "extra ==" not in line]
    assert [re.split(r"[<>=]", line)[0] for line in plain] == ["numpy", "tomli"]
    assert "python_version < " in plain[1]


@pytest.mark.parametrize("extra", ["onnxruntime", "gpu", "tensorrt", "rtx", "lean", "jetson6", "jetson7"])
def test_no_backend_brings_opencv_or_torch(wheel: zipfile.ZipFile, extra: str) -> None:
    metadata = wheel.read(f"edgerpn-{edgerpn.__version__}.dist-info/METADATA").decode()
    brought = re.findall(rf'^Requires-Dist: (.*); .*extra == "{extra}"$', metadata, re.MULTILINE)
    assert brought
    assert not [line for line in brought if re.match(r"opencv|torch|edgerpn", line)]


def test_the_installed_package_is_visible_to_static_tools_and_up_to_date(root: Path) -> None:
    hint = "install with ./dev, or with pip install -e . in strict mode"
    spec = importlib.machinery.PathFinder.find_spec("edgerpn")
    assert spec is not None, f"type checkers and editors cannot see this editable install; {hint}"
    assert spec.submodule_search_locations is not None
    site = Path(spec.submodule_search_locations[0]).parent
    missing = []
    for name in tracked_files(root):
        folder, _, rest = name.partition("/")
        if folder in PACKAGES and not (site / PACKAGES[folder] / rest).is_file():
            missing.append(name)
    assert not missing, f"files that came after the install; {hint}"
    assert importlib.metadata.version("edgerpn") == edgerpn.__version__


def imported_by(modules: list[str]) -> set[str]:
    """Top-level names of everything outside the standard library that importing `modules` loads."""
    code = (
        "import importlib, sys\n"
        "before = set(sys.modules)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split()) - set(sys.stdlib_module_names)


def test_the_package_itself_imports_nothing() -> None:
    assert imported_by(["edgerpn"]) == {"edgerpn"}


def test_the_core_imports_nothing_but_numpy(root: Path) -> None:
    modules = [f"edgerpn.{path.stem}" for path in sorted((root / "core").glob("*.py")) if path.stem != "__init__"]
    assert "edgerpn.settings" in modules
    assert imported_by(modules) - {"tomli"} == {"edgerpn", "numpy"}


def test_images_copy_what_the_wheels_need_and_docker_sees(root: Path) -> None:
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    seen = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for dockerfile in (root / "docker").glob("*.Dockerfile"):
        copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE)
        sources = {source for copy in copies for source in copy.split()}
        assert {*packages.values(), "general", "docker/check_image.py"} <= sources, dockerfile.name
        assert {source for source in sources if not (root / source).exists()} == set(), dockerfile.name
        assert sources <= seen, dockerfile.name


@pytest.mark.parametrize(
    ("missing", "is_needed"),
    [("starlette", False), ("cuda", False), ("edgerpn.runtime.redaction", True), ("numpy.typing", True)],
)
def test_the_check_of_an_image_names_a_module_that_does_not_import(root: Path, missing: str, is_needed: bool) -> None:
    code = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; "
    code += "runpy.run_path('docker/check_image.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, missing], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == is_needed, done.stderr
    assert (missing in done.stdout) == is_needed
    assert (", 0 problems" in done.stdout) != is_needed


def test_the_check_of_an_image_tells_whether_opencv_reads_gstreamer(root: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    has_it = any("GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())
    done = subprocess.run(
        [sys.executable, "docker/check_image.py", "--gstreamer"], cwd=root, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == (0 if has_it else 1), done.stdout + done.stderr
    assert ("has no GStreamer" in done.stdout) != has_it
