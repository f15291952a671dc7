"""A tiny COCO folder and tiny settings, with which a training takes a second or two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgerpn import settings
from edgerpn.train.config import TrainSettings
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.folder import RunFolder, plot_losses
from edgerpn.train.run.loop import run_training
from edgerpn.train.run.ranks import SINGLE_PROCESS, Ranks
from edgerpn.train.run.setup import RunRequest, set_up
from edgerpn.train.run.state import TrainingRun

NUM_TRAIN, NUM_VAL, SIDE = 16, 12, 96


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal numbers on every machine, and no crowding on small ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def without_plots() -> Iterator[None]:
    """Trains without loss plots, which take longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgerpn.train.run.folder.plot_losses", lambda rows, path: None)
        yield


@pytest.fixture
def with_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws loss plots, as a run of a user does."""
    monkeypatch.setattr("edgerpn.train.run.folder.plot_losses", plot_losses)


def write_split(folder: Path, split: str, count: int, first_id: int) -> None:
    """Grey noise with one or two bright rectangles in each image."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first_id, first_id + count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(60, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        for _ in range(1 + number % 2):
            w, h = (int(v) for v in rng.integers(20, 48, 2))
            x, y = int(rng.integers(0, SIDE - w)), int(rng.integers(0, SIDE - h))
            color = tuple(int(v) for v in rng.integers(170, 255, 3))
            cv2.rectangle(pixels, (x, y), (x + w - 1, y + h - 1), color, -1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 5, "bbox": [x, y, w, h], "iscrowd": 0}
            )
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "rectangle"}]}
    (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `edgerpn train --data` expects it."""
    folder = tmp_path_factory.mktemp("rectangles")
    (folder / "images").mkdir()
    write_split(folder, "train", NUM_TRAIN, 100)
    write_split(folder, "val", NUM_VAL, 500)
    return folder


TINY = (
    "model.anchors={strides_px=[8, 16, 32], sizes_px=[[32.0], [64.0], [128.0]]}",
    "model.stage_channels=[8, 8, 16, 16, 16]",
    "model.stage_blocks=[0, 0, 1, 0, 0]",
    "model.neck_channels=16",
    "model.head_channels=16",
    "data.input_hw=[96, 96]",
    "data.view_sides_px=[64, 0]",
    "data.batch_size=4",
    "data.workers=0",
    "proposals.pre_nms=100",
    "loop.device=cpu",
    "loop.amp=off",
    "loop.threads=1",
    "loop.epochs=2",
    "loop.evaluations=1",
    "loop.log_every=1",
)


@pytest.fixture(scope="session")
def tiny_texts() -> tuple[str, ...]:
    """`--set` texts that make a training tiny."""
    return TINY


@pytest.fixture
def tiny_settings() -> Callable[..., TrainSettings]:
    """Makes tiny settings, changed by further `--set` texts."""
    return lambda *overrides: settings.load(TrainSettings, overrides=(*TINY, *overrides))


@pytest.fixture(scope="session")
def finished_run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch (4 steps) with tiny settings; to read, not to change."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_training(settings.load(TrainSettings, overrides=(*TINY, "loop.epochs=1")), data=data_folder, output=out)
    return out


@pytest.fixture
def copy_of_finished(finished_run: Path, tmp_path: Path) -> Callable[[str], RunFolder]:
    """Copies the finished run to `tmp_path` / name."""

    def copy(name: str) -> RunFolder:
        shutil.copytree(finished_run, tmp_path / name)
        return RunFolder(tmp_path / name)

    return copy


@pytest.fixture
def make_run(
    data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> Callable[..., TrainingRun]:
    """Makes a run before its first step in `tmp_path` / name, with tiny settings changed by further `--set` texts."""

    def make(
        name: str, *texts: str, ranks: Ranks = SINGLE_PROCESS, log: Callable[[str], None] = lambda _: None
    ) -> TrainingRun:
        settings = tiny_settings(*texts)
        request = RunRequest(
            settings=settings,
            data=data_folder,
            folder=RunFolder(tmp_path / name),
            resume=False,
            backbone_weights=None,
            log=log,
        )
        return set_up(request, ranks, choose_compute(settings.loop))

    return make
