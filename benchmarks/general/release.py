"""Exports the general weights into the distribution edgerpn-general, in both of its sizes.

    python -m benchmarks.general.release --images DIR

DIR holds photographs on which graph and network are compared. Two of them become the golden frames of each size, which
travel with the weights: take photographs whose licence allows that. The last lines name them, for CARD.md.

The files in general/edgerpn_general/ are replaced together, after both exports have passed all their checks, and so are
their hashes in CARD.md.
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

import cv2
import numpy as np
import onnx

from edgerpn import files, golden, manifest
from edgerpn.errors import DataError, EdgeRpnError, ExportError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.photographs import fit_photograph, list_photographs
from edgerpn.models import GENERAL_MODELS

SIZES_HW = dict(zip(GENERAL_MODELS, ((640, 640), (384, 640)), strict=True))
"""Height and width that each model works at, pixels."""
_ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = _ROOT / "train" / "weights" / "edge-general.safetensors"
"""The checkpoint that comes with edgerpn.train: what ships in both packages must be one network."""
PACKAGE = _ROOT / "general" / "edgerpn_general"


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.general.release", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", default=WEIGHTS, metavar="CHECKPOINT", help=f"default: {WEIGHTS}"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs that may be published")
    parser.add_argument("-o", "--output", type=Path, default=PACKAGE, metavar="DIR", help=f"default: {PACKAGE}")
    options = parser.parse_args(argv)
    try:
        release(options.checkpoint, options.images, options.output)
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def release(checkpoint: Path, images: Path, output: Path) -> None:
    """Exports both sizes into the folder `output` and prints what is in them.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: There are no photographs.
        ExportError: An export fails, or a file would publish names of this machine.
        ParityError: A graph and the network disagree.
    """
    if not images.is_dir() or not (photographs := list_photographs(images, print)):
        raise DataError(f"--images {images}: no photographs in it")
    with tempfile.TemporaryDirectory(prefix="edgerpn-general-") as folder:
        for name, size_hw in SIZES_HW.items():
            model = Path(folder) / f"{name}.onnx"
            export_onnx(checkpoint, model, ExportConfig(network_hw=size_hw), images=photographs, log=print)
            print(f"{name}: golden frames from {', '.join(golden_sources(model, photographs))}")
        made = sorted(Path(folder).iterdir())
        refuse_private(made, (checkpoint.resolve().parent, images.resolve(), Path(folder)))
        for file in made:
            shutil.copyfile(file, output / file.name)
            print(f"{output / file.name}: {file.stat().st_size:,} bytes")
    _update_card(output)


def _update_card(folder: Path) -> None:
    """Writes the hashes of the models into the rows of CARD.md that name their files."""
    card = folder / "CARD.md"
    text = card.read_text(encoding="utf-8")
    for name in GENERAL_MODELS:
        row = rf"(?m)^(\|.*`{re.escape(name)}\.onnx`.*?)\b[0-9a-f]{{64}}\b"
        text, num_rows = re.subn(row, rf"\g<1>{files.sha256(folder / f'{name}.onnx')}", text)
        if num_rows != 1:
            print(f"warning: {card}: no row of a table with `{name}.onnx` and a hash; write it by hand")
    files.write_text(card, text)


def golden_sources(model: Path, photographs: Sequence[Path]) -> list[str]:
    """Returns the file names of the photographs that the golden frames of a model show."""
    described = manifest.read(model)
    frames = golden.read(model, described).frames
    shape = described.input.frame_shape
    fitted = {path.name: fit_photograph(cv2.imread(str(path)), shape) for path in photographs}
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
    return file.read_text(encoding="utf-8") if file.suffix == ".json" else ""


if __name__ == "__main__":
    sys.exit(main())
