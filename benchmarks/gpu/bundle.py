"""Everything that the stages of `benchmarks.gpu.check` need, in one folder, made on a machine without a GPU.

    python -m benchmarks.gpu.bundle FOLDER [--checkpoint best.pt] [--data DIR] [--size 384x640] [--python 3.12]

FOLDER then holds:

    site/            our package and these benchmarks, importable as they lie there
    models.tar.xz    graph, engine and network alone (TensorRT-RTX, fp16), weights, frames, expected proposals
    rtx.tar.xz.NN    TensorRT-RTX for Python 3.12 without its wheels, in parts that fit through a narrow door
    bundle.json      sizes and hashes

TensorRT-RTX is NVIDIA's: do not publish the folder. Needs edgerpn[export,rtx]; bindings for another Python come through
`pip download`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.gpu.models import EXPORTS, export_words
from benchmarks.gpu.session import Figures, Notes, Record, Session, Skip
from benchmarks.machine import installed_version
from edgerpn import files, settings
from edgerpn.arguments import size_argument

MODELS, LIBRARY = "models.tar.xz", "rtx.tar.xz"
NUM_FRAMES = 4
_PART_BYTES = 20 << 20
_PACKAGES = {"core": "edgerpn", **{name: f"edgerpn/{name}" for name in ("train", "export", "runtime", "demo")}}
_BINDINGS = "tensorrt_rtx_cu13_bindings"
_KEPT = ("model.onnx", "model.json", "model.golden.npz", "model.engine", "model.engine.json",
         "model.engine.golden.npz", "network.engine", "detector.pt", "detector.json", "frames.npz", "camera.npz",
         "expected-model.npz", "expected-detector.npz")  # fmt: skip


def main() -> int:
    """Makes the folder; returns 1 when a step failed."""
    arguments = _arguments()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgerpn-bundle-") as name:
        work = Path(name)
        session = Session(work, minutes=arguments.minutes, names={str(folder): "FOLDER"})
        broken = _make_models(session, arguments)
        if broken is not None:
            print(f"{broken.name} failed: {broken.reason}", *broken.output, sep="\n")
            return 1
        pack(folder / MODELS, {name: work / name for name in _KEPT}, is_program=False)
        if not arguments.without_library:
            with library_files(arguments.python, work) as found:
                split(pack(folder / LIBRARY, found, is_program=True), _PART_BYTES)
    copy_site(folder / "site")
    about: Figures = {"packages": {name: installed_version(name) for name in ("torch", "onnx", _BINDINGS)}}
    listed = sorted(file for file in folder.glob("*.xz*") if file.is_file())
    about["files"] = {file.name: {"mib": _mib(file), "sha256": files.sha256(file)} for file in listed}
    files.write_text(folder / "bundle.json", json.dumps(about, indent=2) + "\n")
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder.name}: {total / 2**20:.1f} MiB")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of a training run (default: random weights)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="val.json and images/ (default: made-up pictures)")
    parser.add_argument("--size", type=size_argument, metavar="HxW", help="network size (default: as trained)")
    parser.add_argument(
        "--python", default="{}.{}".format(*sys.version_info), help="Python of the machine with the GPU (as here)"
    )
    parser.add_argument("--without-library", action="store_true", help="leave TensorRT-RTX out")
    parser.add_argument("--minutes", type=float, default=60, help="time for all steps (60)")
    return parser.parse_args()


def _make_models(session: Session, arguments: argparse.Namespace) -> Record | None:
    """Exports, builds and describes; returns the step that failed, or None."""
    work = session.work
    given = {"work": str(work), "data": _text(arguments.data), "model": None, "size": arguments.size}
    prepared = session.child("prepare", "prepare", {**given, "checkpoint": _text(arguments.checkpoint)}, limit_s=600)
    if not prepared.is_done:
        return prepared
    checkpoint, size = prepared.figures["checkpoint"], arguments.size
    half = next(export for export in EXPORTS if export.name == "fp16")
    words = export_words(
        half, checkpoint=checkpoint, output=work / "model.onnx", target="tensorrt-rtx", data=None,
        size="x".join(map(str, size)) if size else None, pictures=work / "pictures",
    )  # fmt: skip
    build = ["build", work / "model.onnx", "-o", work / "model.engine", "--backend", "tensorrt-rtx"]
    cut = {"onnx": str(work / "model.onnx"), "cut": str(work / "network.onnx")}
    network = {"library": "tensorrt-rtx", "onnx": cut["cut"], "engine": str(work / "network.engine")}
    steps: list[Callable[[], Record]] = [
        lambda: session.edgerpn("export", words, limit_s=1200),
        lambda: session.edgerpn("build", build, limit_s=1800),
        lambda: session.child("cut", "cut", cut),
        lambda: session.child("build the network alone", "network", network, limit_s=1800),
        lambda: session.child("describe", "describe", {"work": str(work), "checkpoint": checkpoint}, limit_s=300),
    ]
    return next((record for record in (step() for step in steps) if not record.is_done), None)


def describe(request: Figures, notes: Notes) -> None:
    """Writes weights, frames, and the proposals that the graph and the detector find in them on the CPU."""
    import numpy as np
    import torch

    from benchmarks.gpu.detector import load_detector
    from edgerpn.proposals import Outputs
    from edgerpn.runtime.backends.open_backend import open_backend

    work = Path(request["work"])
    write_module(work, exported_detector(request["checkpoint"], work / "model.onnx"))
    frames = np.load(work / "frames.npy")[:NUM_FRAMES]
    np.savez_compressed(work / "frames.npz", frames=frames)
    np.savez_compressed(work / "camera.npz", camera=np.load(work / "camera.npy"))
    backend = open_backend(work / "model.onnx", providers=["cpu"])
    found = [backend.infer(frame[None]) for frame in frames]
    _write_expected(work / "expected-model.npz", Outputs.join(found)[:3])
    with torch.inference_mode():
        batch = load_detector(work)(torch.from_numpy(frames))
    _write_expected(work / "expected-detector.npz", [part.numpy() for part in batch[:3]])
    notes(frames=len(frames), proposals=int(batch.count.sum()))


def _write_expected(path: Path, outputs: Sequence[Any]) -> None:
    import numpy as np

    np.savez_compressed(path, **dict(zip(("boxes", "scores", "count"), outputs, strict=True)))


def exported_detector(checkpoint: str, onnx: Path) -> Any:
    """Returns the detector of a graph that was exported from a checkpoint."""
    from edgerpn import manifest
    from edgerpn.export.export_config import ExportConfig
    from edgerpn.export.onnx.graph import export_module, proposal_config
    from edgerpn.train.checkpoint import load_model

    model, loaded = load_model(checkpoint)
    exported = manifest.read(onnx)
    stage, network_hw = exported.proposals, exported.input.network_hw
    config = ExportConfig(target="tensorrt", num_proposals=stage.num_proposals, pre_nms=stage.pre_nms)
    proposals = dataclasses.replace(proposal_config(loaded, config), nms_candidates=stage.nms_candidates)
    if stage.nms_iterations is not None:
        proposals = dataclasses.replace(proposals, nms_iterations=stage.nms_iterations)
    return export_module(model, proposals, config, network_hw)


def write_module(folder: Path, module: Any) -> None:
    """Writes the folded weights of a detector in half precision, and its settings."""
    import torch

    torch.save({name: tensor.half() for name, tensor in module.model.state_dict().items()}, folder / "detector.pt")
    content = {
        "model": settings.to_dict(module.model.config), "proposals": settings.to_dict(module.proposals),
        "network_hw": list(module.network_hw),
    }  # fmt: skip
    files.write_text(folder / "detector.json", json.dumps(content, indent=2) + "\n")


@contextmanager
def library_files(python: str, work: Path) -> Iterator[dict[str, Path]]:
    """Yields the files of TensorRT-RTX by their place in a folder for Python's path.

    Raises:
        SystemExit: It is not installed here, or there are no bindings for that Python.
    """
    found: dict[str, Path] = {}
    for package in ("tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings"):
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{package} is not installed here: pip install 'edgerpn[rtx]', or --without-library")
        root = Path(next(iter(spec.submodule_search_locations)))
        found |= {f"{package}/{file.relative_to(root)}": file for file in root.rglob("*") if _is_kept(file)}
    if python != "{}.{}".format(*sys.version_info):
        other = _download_bindings(python, work)
        found = {name: file for name, file in found.items() if not name.startswith("tensorrt_rtx_bindings/")}
        found |= {str(file.relative_to(other)): file for file in other.rglob("*") if _is_kept(file)}
    yield found


def _is_kept(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts and ".dist-info" not in str(file.parent)


def _download_bindings(python: str, work: Path) -> Path:
    wanted = f"{_BINDINGS}=={installed_version(_BINDINGS)}"
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python, "-d", str(work)]
    done = subprocess.run([sys.executable, "-m", "pip", *words, wanted], text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"pip found no {wanted} for Python {python}: {done.stderr.strip() or done.returncode}")
    unpacked = work / "bindings"
    with zipfile.ZipFile(next(work.glob(f"{_BINDINGS}-*.whl"))) as wheel:
        wheel.extractall(unpacked)
    return unpacked


def pack(target: Path, found: dict[str, Path], *, is_program: bool) -> Path:
    """Packs files into a .tar.xz; code of x86-64 shrinks more with its filter."""
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_X86}] if is_program else []
    filters.append({"id": lzma.FILTER_LZMA2, "preset": 9})
    with files.replacing(target) as temporary:
        with (
            lzma.open(temporary, "wb", filters=filters) as stream,
            tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w|") as archive,
        ):
            for name, file in sorted(found.items()):
                archive.add(file, name)
        print(f"{target.name}: {temporary.stat().st_size / 2**20:.1f} MiB", flush=True)
    return target


def split(archive: Path, part_bytes: int) -> None:
    """Cuts a file into parts NAME.00, NAME.01, ... and removes it; older parts go."""
    for old in archive.parent.glob(archive.name + ".*"):
        old.unlink()
    with archive.open("rb") as source:
        for number, part in enumerate(iter(lambda: source.read(part_bytes), b"")):
            files.write_bytes(archive.with_name(f"{archive.name}.{number:02}"), part)
    archive.unlink()


def unpack(bundle: Path, name: str, target: Path) -> Path | None:
    """Unpacks an archive of a bundle, whole or in parts, into `target` once; returns None when a bundle has none.

    Raises:
        Skip: A part is missing.
    """
    if target.is_dir():
        return target
    about = bundle / "bundle.json"
    listed = json.loads(about.read_text(encoding="utf-8"))["files"] if about.is_file() else {}
    parts = [bundle / part for part in sorted(listed) if part == name or part.startswith(name + ".")]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise Skip(f"{', '.join(missing)} of the bundle did not come along")
    if not parts:
        return None
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole)
        whole.seek(0)
        # Appears whole, so that a stage that was stopped here leaves nothing that a later one would take.
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        with lzma.open(whole) as stream, tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            archive.extractall(temporary, filter="data")
        temporary.rename(target)
    return target


def copy_site(site: Path) -> None:
    """Copies our package and the benchmarks in the layout in which they import."""
    root = Path(__file__).resolve().parents[2]
    shutil.rmtree(site, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.js", "*.css", "*.svg", "*.html")
    for source, package in _PACKAGES.items():
        shutil.copytree(root / source, site / package, ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(root / "benchmarks", site / "benchmarks", ignore=ignored)


def _mib(file: Path) -> float:
    return round(file.stat().st_size / 2**20, 2)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


if __name__ == "__main__":
    sys.exit(main())
