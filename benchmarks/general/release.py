"""Puts a checkpoint into both packages: its weights into edgerpn.train, its exported models into edgerpn-general.

    python -m benchmarks.general.release RUN/best.pt --images DIR

Without a checkpoint the weights stay, and the models are exported again. They are exported from the weights in float16
that training starts from, so that both packages hold one network.

DIR holds photographs on which graph and network are compared. Two of them become the golden frames of each size, which
travel with the weights: take photographs whose licence allows that. The last lines name them, for the card.

Nothing is replaced before both exports have passed all their checks; the hashes in the card come last.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from edgerpn import files, golden, manifest
from edgerpn.errors import DataError, EdgeRpnError, ExportError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.photographs import list_photographs, read_photograph
from edgerpn.models import GENERAL_MODELS
from edgerpn.train.checkpoint import load_checkpoint, save_weights
from edgerpn.train.network.weights import read_safetensors

SIZES_HW = dict(zip(GENERAL_MODELS, ((640, 640), (384, 640)), strict=True))
"""Height and width that each model works at, pixels."""
_ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = _ROOT / "train" / "weights" / "edge-general.safetensors"
"""The checkpoint that comes with edgerpn.train; its card lies beside it."""
PACKAGE = _ROOT / "general" / "edgerpn_general"


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.general.release", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="best.pt of a run; without it the weights stay"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FILE", help=f"default: {WEIGHTS}")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs that may be published")
    parser.add_argument("-o", "--output", type=Path, default=PACKAGE, metavar="DIR", help=f"default: {PACKAGE}")
    options = parser.parse_args(argv)
    try:
        release(options.checkpoint, options.images, options.output, options.weights)
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def release(checkpoint: Path | None, images: Path, output: Path, weights: Path = WEIGHTS) -> None:
    """Writes the weights of a checkpoint to `weights` and both exports into `output`, and prints what is in them.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: There are no photographs.
        ExportError: An export fails, or a file would publish names of this machine.
        ParityError: A graph and the network disagree.
    """
    if not images.is_dir() or not (photographs := list_photographs(images, print)):
        raise DataError(f"--images {images}: no photographs in it")
    with tempfile.TemporaryDirectory(prefix="edgerpn-general-") as folder:
        shared = weights
        if checkpoint is not None:
            shared = Path(folder) / "weights" / weights.name
            save_weights(load_checkpoint(checkpoint), shared)
        for name, size_hw in SIZES_HW.items():
            model = Path(folder) / f"{name}.onnx"
            export_onnx(shared, model, ExportConfig(network_hw=size_hw), images=photographs, log=print)
            print(f"{name}: golden frames from {', '.join(golden_sources(model, photographs))}")
        made = sorted(path for path in Path(folder).iterdir() if path.is_file())
        private = (images.resolve(), Path(folder), *(() if checkpoint is None else (checkpoint.resolve().parent,)))
        refuse_private([*made, shared], private)
        card = weights.with_suffix(".md")
        text = _with_hashes(card, [shared, *(file for file in made if file.suffix == ".onnx")])
        targets = {shared: weights, **{file: output / file.name for file in made}}
        for source, target in targets.items():
            if source != target:
                with files.replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
            print(f"{target}: {target.stat().st_size:,} bytes")
        files.write_text(card, text)


def _with_hashes(card: Path, described: Sequence[Path]) -> str:
    """Returns the text of the card with the hashes of files in the rows that name them.

    Raises:
        DataError: A file has no such row.
    """
    text = card.read_text(encoding="utf-8")
    for file in described:
        row = rf"(?m)^(\|.*`{re.escape(file.name)}`.*?)\b[0-9a-f]{{64}}\b"
        text, num_rows = re.subn(row, rf"\g<1>{files.sha256(file)}", text)
        if num_rows != 1:
            raise DataError(f"{card}: expected one row of a table with `{file.name}` and a hash, got {num_rows}")
    return text


def golden_sources(model: Path, photographs: Sequence[Path]) -> list[str]:
    """Returns the file names of the photographs that the golden frames of a model show."""
    described = manifest.read(model)
    frames = golden.read(model, described).frames
    shape, exif = described.input.frame_shape, described.input.exif_reading
    fitted = {path.name: read_photograph(path, shape, exif) for path in photographs}
    return [name for frame in frames for name, laid in fitted.items() if np.array_equal(frame, laid)]


def refuse_private(made: Sequence[Path], folders: Sequence[Path]) -> None:
    """Refuses files in which the name of this machine, of a home folder or of a folder of the export stands.

    Raises:
        ExportError: Names file and text.
    """
    names = [re.escape(path) for path in (os.path.expanduser("~"), os.getcwd(), *map(str, folders)) if path != "/"]
    if platform.node() not in ("", "localhost"):
        # A short name of a machine is also a part of words.
        names.append(rf"\b{re.escape(platform.node())}\b")
    for file in made:
        found = re.search("|".join(names), text_of(file))
        if found:
            raise ExportError(f"{file.name}: it holds the text {found[0]!r}, a name of this machine")


def text_of(file: Path) -> str:
    """Returns the text in a model or manifest, without the numbers of weights; golden frames hold numbers only."""
    if file.suffix == ".onnx":
        proto = onnx.load(file)
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
        return str(proto)
    if file.suffix == ".safetensors":
        return str(read_safetensors(file)[1])
    return file.read_text(encoding="utf-8") if file.suffix == ".json" else ""


if __name__ == "__main__":
    sys.exit(main())
