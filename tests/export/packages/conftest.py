"""A model with golden frames, and its bundle for every program, each made once in a session."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn import golden, manifest
from edgerpn.export.packages.package import TARGETS, package
from edgerpn.golden import Golden
from edgerpn.runtime import load
from tests.support.models import NETWORK_HW, MakeModel, paint_frame, write_model


@pytest.fixture(scope="session")
def make_packed(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Writes a `bright` model and golden frames, on which it finds 3, 7 and no boxes."""
    return lambda **values: write_packed(tmp_path_factory.mktemp("packed"), **values)


@pytest.fixture(scope="session")
def packed_model(make_packed: MakeModel) -> Path:
    """Such a model with a dynamic batch."""
    return make_packed(batch=None)


def write_packed(folder: Path, **values: Any) -> Path:
    path = write_model(folder, **values)
    frames = np.stack([paint_frame(*NETWORK_HW, box=(5, 10, 60, 70), count=count) for count in (3, 7, 0)])
    with load(path) as model:
        if model.manifest.input.num_channels == 4:
            frames = np.concatenate([frames, frames[..., :1]], axis=3)
        spec = golden.write(Golden(frames=frames, **model.backend.infer(frames)._asdict()), path)
        provenance = dataclasses.replace(model.manifest.provenance, checkpoint_sha256="1" * 64)
        proposals = dataclasses.replace(model.manifest.proposals, nms="portable")
        manifest.write(model.manifest.replace(golden=spec, provenance=provenance, proposals=proposals), path)
    return path


@pytest.fixture(scope="session")
def bundles(packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of the model for every program."""
    folder = tmp_path_factory.mktemp("bundles")
    return {target: package(packed_model, target, folder / target) for target in TARGETS}
