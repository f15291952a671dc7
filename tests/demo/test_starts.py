"""The demo measures the very weights that its trainings start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgerpn.demo.starts import STARTS, evaluate_start, settings_by_start, start_detector
from edgerpn.demo.synthetic.dataset import write_dataset
from edgerpn.errors import ConfigError
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.ranks import SINGLE_PROCESS
from edgerpn.train.run.setup import RunRequest, set_up


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    write_dataset(folder, num_train=2, num_val=2, hw=(128, 192))
    return folder


def test_a_network_that_the_general_weights_do_not_fit_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="--set model: the demo fine-tunes the general weights, which are for"):
        settings_by_start(load_settings(overrides=("model.stage_channels=[8, 8, 8, 8, 8, 8]",)))


@pytest.fixture
def settings() -> dict[str, TrainSettings]:
    return settings_by_start(load_settings(overrides=("data.input_hw=[128, 192]", "data.workers=0", "loop.seed=5")))


@pytest.mark.parametrize("start", STARTS)
def test_a_detector_has_the_weights_that_the_training_starts_from(
    start: str, data: Path, settings: dict[str, TrainSettings], tmp_path: Path
) -> None:
    request = RunRequest(
        settings=settings[start],
        data=data,
        folder=RunFolder(tmp_path / "run"),
        resume=False,
        backbone_weights=None,
        log=lambda _: None,
    )
    run = set_up(request, SINGLE_PROCESS, choose_compute(settings[start].loop))
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 128, 192, 3), np.uint8))
    model = run.model.eval()
    with torch.inference_mode():
        expected = model(model.standardize(frames.float().permute(0, 3, 1, 2)))
        found = {name: start_detector(settings[name]).network_levels(frames) for name in STARTS}
    for (logits, deltas), (expected_logits, expected_deltas) in zip(found.pop(start), expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deltas, expected_deltas, rtol=1e-3, atol=1e-3)
    (other,) = found.values()
    assert not torch.allclose(other[0][0], expected[0][0], atol=0.01)


def test_the_two_trainings_differ_in_their_start_only(settings: dict[str, TrainSettings]) -> None:
    general, random = settings.values()
    assert (general.loop.start, random.loop.start) == ("general", "random")
    assert dataclasses.replace(random, loop=dataclasses.replace(random.loop, start="general")) == general


def test_recall_before_training_is_of_all_validation_images(data: Path, settings: dict[str, TrainSettings]) -> None:
    found = evaluate_start(settings["general"], data)
    assert found.num_images == 2
    assert 0 <= found.metrics["AR@100"] <= 1
    # The evaluations during a training have as many proposals, so the curve has one measure.
    assert found.num_proposals == 1000
