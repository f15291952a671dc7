"""Writes a bundle: the graph as another program takes it, its configuration, a smoke test and a page of commands."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import edgerpn.manifest
from edgerpn import files, golden
from edgerpn.errors import ExportError, SelfTestError, check_setting
from edgerpn.export.export_config import MIN_SCORE
from edgerpn.export.packages import smoke
from edgerpn.golden import Golden
from edgerpn.manifest import Manifest
from edgerpn.matching import TOLERANCES
from edgerpn.models import find_model
from edgerpn.proposals import FEATURES
from edgerpn.runtime.backends.onnxruntime import harmful_optimizers

TARGETS = {"frigate": "Frigate", "deepstream": "DeepStream", "triton": "NVIDIA Triton"}
"""Programs that bundles are for: the module here that writes each, and the program's name."""
CLASS_NAME = "object"
"""Name of the proposals of a model without classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageConfig:
    """Settings of a bundle."""

    min_score: float = MIN_SCORE
    """Proposals with at least this score are worth showing, above 0, below 1; the configuration in the bundle has
    it."""

    def __post_init__(self) -> None:
        check_setting(0 < self.min_score < 1, "min_score", "more than 0 and less than 1", self.min_score)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """An exported model, for the module of a target."""

    file: Path
    """The ONNX file."""
    manifest: Manifest
    """Its manifest; the layout is `proposals`."""
    golden: Golden
    """Its golden frames, with the expected proposals."""
    config: PackageConfig
    """Settings of the bundle."""


class Contents(NamedTuple):
    """A target's `write(packed, folder)` returns this after it has written its files."""

    graph: str
    """The ONNX file that the smoke test runs, relative to the folder."""
    expected: Golden
    """Frames and the proposals that this graph gives for them."""
    commands: str
    """Markdown: the commands that put the bundle to use."""
    outputs: Mapping[str, str] | None = None
    """Outputs of this graph by their meaning, see `smoke.run`; None: those that the manifest describes."""


def package(
    model: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    config: PackageConfig | None = None,
    *,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Writes the bundle of a model for another program; the folder appears whole, after its smoke test has passed.

    Args:
        model: An exported ONNX file, or the name of an installed model such as `general`.
        target: One of `TARGETS`.
        output: The folder to write; it may exist if it is empty.
        config: Settings; None: the defaults.
        log: Called with one line of text for people, now and then.

    Returns:
        The folder.

    Raises:
        ManifestError: The model or its golden frames are missing or damaged.
        ExportError: The program cannot use this model, or the folder is not empty.
        SelfTestError: The smoke test fails.
    """
    output, log = Path(output), log or (lambda _: None)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output}: expected a new or an empty folder for the bundle")
    packed = _read(Path(find_model(model)), config or PackageConfig())
    module = importlib.import_module(f"edgerpn.export.packages.{target}")
    with files.filling(output) as folder:
        contents: Contents = module.write(packed, folder)
        _write_smoke(folder, packed.manifest, contents)
        page = _page(packed.manifest, TARGETS[target], contents.commands)
        (folder / "README.md").write_text(page, encoding="utf-8")
        problems = smoke.check(folder)
        if problems:
            raise SelfTestError(f"{packed.file}: the bundle for {TARGETS[target]} does not work: {'; '.join(problems)}")
        log(f"the smoke test passed on {len(contents.expected.frames)} golden frames")
    return output


def _read(file: Path, config: PackageConfig) -> Packed:
    if file.suffix != ".onnx":
        raise ExportError(f"{file}: expected an exported ONNX file; write one with: edgerpn export CHECKPOINT -o MODEL")
    manifest = edgerpn.manifest.read(file)
    if manifest.layout != "proposals":
        raise ExportError(f"{file}: its layout is {manifest.layout}; package the ONNX file that it was made from")
    return Packed(file=file, manifest=manifest, golden=golden.read(file, manifest), config=config)


def _write_smoke(folder: Path, manifest: Manifest, contents: Contents) -> None:
    tolerance = dataclasses.asdict(TOLERANCES[manifest.rounding])
    limits = {name: tolerance[name] for name in ("min_iou", "max_score_difference", "max_unmatched_share")}
    expected = contents.expected
    compared = {name: array for name, array in expected.outputs.present.items() if name not in FEATURES}
    settings = {
        "graph": contents.graph,
        "outputs": contents.outputs or {name: manifest.outputs_by_role[name].name for name in compared},
        "disabled_optimizers": harmful_optimizers(manifest),
        **limits,
    }
    (folder / "smoke.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    np.savez_compressed(folder / "smoke.npz", frames=expected.frames, **compared)  # type: ignore[arg-type]
    shutil.copyfile(smoke.__file__, folder / "smoke.py")


_PAGE = """# {name} for {program}

{height} x {width} pixels, {precision}, SHA-256 of the ONNX file that this comes from: {sha256}

{commands}

## Smoke test

```sh
pip install numpy onnxruntime
python smoke.py
```

It runs the graph of this folder in ONNX Runtime on golden frames and compares the proposals, with their classes, with
those that the model gave at its export.
"""


def _page(manifest: Manifest, program: str, commands: str) -> str:
    height, width = manifest.input.frame_hw
    return _PAGE.format(
        name=manifest.name,
        program=program,
        height=height,
        width=width,
        precision=manifest.precision,
        sha256=manifest.provenance.onnx_sha256,
        commands=commands.strip(),
    )
