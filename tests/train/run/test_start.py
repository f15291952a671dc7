"""The weights that a run starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgerpn.errors import CheckpointError, ConfigError
from edgerpn.models import GENERAL
from edgerpn.train import evaluate
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.network.model import Rpn
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.start import RANDOM, choose_start
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.training import train

MakeRun = Callable[..., TrainingRun]
MakeSettings = Callable[..., TrainSettings]


def test_the_default_network_starts_from_the_general_weights() -> None:
    settings = load_settings()
    lines: list[str] = []
    torch.manual_seed(0)
    model = Rpn(settings.model)
    start = choose_start(settings, backbone_weights=None)
    resolved = start.apply(model, settings, lines.append)
    expected = load_checkpoint(GENERAL).weights
    assert set(expected) == set(model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert resolved.loop.start == GENERAL
    assert lines == ["start: the general weights of this package (--from random starts without them)"]


def test_asked_for_random_weights_it_draws_the_same_as_without_any() -> None:
    settings = load_settings(overrides=("loop.start=random",))
    torch.manual_seed(3)
    plain = Rpn(settings.model).state_dict()
    torch.manual_seed(3)
    start = choose_start(settings, backbone_weights=None)
    model = Rpn(settings.model)
    assert start.apply(model, settings, lambda _: None).loop.start == RANDOM
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_another_network_starts_from_random_weights_and_says_why(tiny_settings: MakeSettings) -> None:
    start = choose_start(tiny_settings(), backbone_weights=None)
    assert (start.name, start.weights) == (RANDOM, {})
    assert start.lines[0].startswith("start: random weights; the general ones do not fit: 'backbone.stages.0.0.conv")
    assert "expected (8, 3, 3, 3)" in start.lines[0]


def test_weights_asked_for_must_fit(tiny_settings: MakeSettings) -> None:
    with pytest.raises(ConfigError, match=r"--from\) general: made for another network: 'backbone\.") as error:
        choose_start(tiny_settings("loop.start=general"), backbone_weights=None)
    assert "--from random" in str(error.value)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file"):
        choose_start(tiny_settings("loop.start=nowhere.pt"), backbone_weights=None)


def test_layers_after_the_backbone_may_differ() -> None:
    settings = load_settings(overrides=("loop.start=general", "model.anchors.ratios_hw=[0.5,1.0,2.0]"))
    start = choose_start(settings, backbone_weights=None)
    own = Rpn(settings.model).state_dict()
    new = set(own) - set(start.weights)
    assert new
    assert all(name.startswith("head.") for name in new)
    assert "random, as they do not fit: head." in start.lines[0]


def test_weights_of_a_backbone_alone_need_a_random_start(tmp_path: Path, tiny_settings: MakeSettings) -> None:
    assert choose_start(tiny_settings(), backbone_weights=tmp_path / "resnet.pth").name == RANDOM
    with pytest.raises(ConfigError, match=r"--backbone-weights.*'general'"):
        choose_start(tiny_settings("loop.start=general"), backbone_weights=tmp_path / "resnet.pth")


def test_held_out_classes_are_told_that_the_weights_may_know_them() -> None:
    settings = load_settings(overrides=('data.holdout_classes=["shark"]',))
    assert choose_start(settings, backbone_weights=None).lines[1].startswith("shark: this run does not see their boxes")
    random = load_settings(overrides=('data.holdout_classes=["shark"]', "loop.start=random"))
    assert choose_start(random, backbone_weights=None).lines == ("start: random weights",)


def test_a_run_starts_from_the_averaged_weights_of_a_checkpoint(finished_run: Path, make_run: MakeRun) -> None:
    best = finished_run / "best.pt"
    lines: list[str] = []
    run = make_run("again", f"loop.start={best}", log=lines.append)
    expected = load_checkpoint(best).weights
    assert all(torch.equal(value, expected[name]) for name, value in run.model.state_dict().items())
    assert all(torch.equal(value, expected[name]) for name, value in run.weights.items())
    assert run.progress.step == 0
    assert run.settings.loop.start == str(best)
    assert f"start: {best} (--from random starts without them)" in lines


def test_a_resumed_run_keeps_its_start(
    data_folder: Path, finished_run: Path, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    best = str(finished_run / "best.pt")
    train(data_folder, tmp_path / "run", settings=tiny_settings("loop.epochs=1"), start=None)
    assert load_checkpoint(tmp_path / "run" / "last.pt").settings.loop.start == RANDOM
    train(data_folder, tmp_path / "two", settings=tiny_settings("loop.epochs=1", f"loop.start={best}"))
    lines: list[str] = []
    train(
        data_folder,
        tmp_path / "two",
        settings=tiny_settings("loop.epochs=2"),
        resume=True,
        log=lines.append,
    )
    assert not [line for line in lines if line.startswith("start:")]
    assert load_checkpoint(RunFolder(tmp_path / "two").last).settings.loop.start == best
    with pytest.raises(CheckpointError, match=r"started from .*best\.pt weights and cannot start again from random"):
        train(data_folder, tmp_path / "two", settings=tiny_settings("loop.epochs=3", "loop.start=random"), resume=True)


def test_a_file_called_general_does_not_replace_the_weights_of_the_package(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / GENERAL).write_bytes((finished_run / "best.pt").read_bytes())
    start = choose_start(load_settings(), backbone_weights=None)
    assert start.name == GENERAL
    assert start.weights


def test_evaluation_of_held_out_classes_names_the_start(
    data_folder: Path, finished_run: Path, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "two-classes"
    folder.mkdir()
    (folder / "images").symlink_to(data_folder / "images")
    for split in ("train", "val"):
        content = json.loads((data_folder / f"{split}.json").read_text())
        content["categories"].append({"id": 6, "name": "other"})
        for annotation in content["annotations"][::2]:
            annotation["category_id"] = 6
        (folder / f"{split}.json").write_text(json.dumps(content))
    best = str(finished_run / "best.pt")
    for start, expected in ((best, 1), ("random", 0)):
        chosen = tiny_settings(
            "loop.epochs=1", "data.follow_links=true", 'data.holdout_classes=["other"]', f"loop.start={start}"
        )
        lines: list[str] = []
        result = train(folder, tmp_path / f"run{expected}", settings=chosen)
        evaluate(result.best, folder, log=lines.append)
        assert len([line for line in lines if "may have seen objects of other" in line]) == expected
