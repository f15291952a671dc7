"""Checkpoints: whole, loadable without running code, and refused with a clear error when they are anything else."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from edgerpn import files, settings
from edgerpn.errors import CheckpointError
from edgerpn.models import GENERAL
from edgerpn.train.checkpoint import (
    FORMAT,
    Checkpoint,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_weights,
)
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.network.model import Rpn

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture
def saved(tmp_path: Path, tiny_settings: MakeSettings) -> Path:
    torch.manual_seed(0)
    resolved = tiny_settings()
    checkpoint = Checkpoint(
        settings=resolved,
        weights=Rpn(resolved.model).state_dict(),
        step=12,
        metrics={"AR@100": 0.25},
        data_sha256="ab" * 32,
        data_folder="/somewhere",
        training={"model": {}, "progress": {"step": 12}},
    )
    file = tmp_path / "last.pt"
    save_checkpoint(checkpoint, file)
    return file


def change(file: Path, **changes: Any) -> Path:
    """Writes the checkpoint with some entries changed; None takes an entry out."""
    content = torch.load(file, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None or key == "training"}, file)
    return file


def test_a_checkpoint_comes_back_as_it_was(saved: Path, tiny_settings: MakeSettings) -> None:
    found = load_checkpoint(saved)
    assert found.settings == tiny_settings()
    assert found.step == 12
    assert found.metrics == {"AR@100": 0.25}
    assert (found.data_sha256, found.data_folder) == ("ab" * 32, "/somewhere")
    assert found.training == {"model": {}, "progress": {"step": 12}}
    assert set(found.versions) == {"edgerpn", "python", "torch", "numpy"}
    torch.manual_seed(0)
    for name, value in Rpn(tiny_settings().model).state_dict().items():
        assert torch.equal(found.weights[name], value)
    assert [p.name for p in saved.parent.iterdir()] == ["last.pt"]


def test_every_preset_survives_a_checkpoint(tmp_path: Path) -> None:
    for preset in ("edge", "paper"):
        resolved = load_settings(preset=preset)
        save_checkpoint(Checkpoint(settings=resolved, weights={}, step=0), tmp_path / "x.pt")
        assert load_checkpoint(tmp_path / "x.pt").settings == resolved


def test_a_file_of_ours_loads_with_weights_only(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert content["format"] == FORMAT
    assert content["settings"]["model"]["stage_channels"] == [8, 8, 16, 16, 16]


def test_the_model_of_a_checkpoint_is_in_eval_mode_with_its_weights(saved: Path) -> None:
    model, checkpoint = load_model(saved)
    assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.98, 0.9999])
def test_a_truncated_file_is_called_so(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"last\.pt: truncated: a file of PyTorch without its end; copy it again"):
        load_checkpoint(saved)


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"PK"])
def test_other_files_are_refused(saved: Path, data: bytes) -> None:
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.pt: not a checkpoint of edgerpn, or damaged"):
        load_checkpoint(saved)


def test_a_checkpoint_that_another_program_changed_is_not_called_damaged(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    del content["step"]
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match=r"last\.pt: the checkpoint lacks step: another program changed it"):
        load_checkpoint(saved)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch guesses at what damaged files might be
def test_damaged_files_raise_nothing_else(saved: Path) -> None:
    data = saved.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 40):
            damaged[place] = int(rng.integers(256))
        saved.write_bytes(bytes(damaged))
        try:
            load_checkpoint(saved)  # damage inside a tensor's numbers cannot be seen
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert all(str(saved) in message for message in messages)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 but no archive", b"\x80\x02}q\x00."])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "foreign.pt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.pt: not a checkpoint of edgerpn"):
        load_checkpoint(file)


def test_a_plain_state_dict_is_refused(tmp_path: Path) -> None:
    for foreign in ({"conv1.weight": torch.zeros(2)}, [1, 2, 3], torch.zeros(3)):
        torch.save(foreign, tmp_path / "foreign.pt")
        with pytest.raises(CheckpointError, match="not a checkpoint of edgerpn"):
            load_checkpoint(tmp_path / "foreign.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"this is a folder; did you mean .*best\.pt"):
        load_checkpoint(tmp_path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    content = torch.load(saved, weights_only=True)
    content["metrics"] = Bomb(str(tmp_path / "executed"))
    torch.save(content, saved)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(content, protocol=2))
    for file in (saved, plain):
        with pytest.raises(CheckpointError, match="not a checkpoint of edgerpn"):
            load_checkpoint(file)
        assert not (tmp_path / "executed").exists()
    # The trap works: a reader that runs code makes the folder.
    torch.load(saved, weights_only=False)
    assert (tmp_path / "executed").is_dir()


def test_another_format_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=f"format 99, but this version of edgerpn reads format {FORMAT} only"):
        load_checkpoint(change(saved, format=99))


@pytest.mark.parametrize("entry", ["settings", "step", "metrics", "data_folder", "versions"])
def test_a_missing_entry_is_named(saved: Path, entry: str) -> None:
    with pytest.raises(CheckpointError, match=entry):
        load_checkpoint(change(saved, **{entry: None}))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("weights", [1]),
        ("weights", {1: torch.zeros(3)}),
        ("weights", {"a": None}),
        ("weights", {"a": torch.zeros(3).to_sparse()}),
        ("weights", {"a": torch.zeros(3, device="meta")}),
        ("step", "12"),
        ("metrics", [0.5]),
        ("metrics", {"AR@100": "high"}),
        ("versions", {"torch": torch.float32}),
        ("training", 3),
    ],
)
def test_an_entry_of_another_type_is_named(saved: Path, entry: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"last\.pt: {entry}: not as edgerpn train writes them"):
        load_checkpoint(change(saved, **{entry: value}))


def test_settings_of_another_version_are_named(saved: Path) -> None:
    table = settings.to_dict(load_checkpoint(saved).settings)
    table["model"]["head_chanels"] = 3
    with pytest.raises(CheckpointError, match=r"model\.head_chanels: unknown setting; did you mean 'head_channels'"):
        load_checkpoint(change(saved, settings=table))
    with pytest.raises(CheckpointError, match="settings"):
        load_checkpoint(change(saved, settings=["no", "table"]))


def test_weights_that_do_not_fit_the_settings_are_refused(saved: Path) -> None:
    wider = load_checkpoint(saved).settings
    wider = dataclasses.replace(wider, model=dataclasses.replace(wider.model, head_channels=24))
    with pytest.raises(CheckpointError, match="the weights do not fit the settings"):
        load_model(change(saved, settings=settings.to_dict(wider)))


def test_an_unwritable_checkpoint_leaves_the_old_one(saved: Path) -> None:
    before = saved.read_bytes()
    broken = dataclasses.replace(load_checkpoint(saved), training={"cannot": lambda: None})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(broken, saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.pt"]


def test_weights_to_share_hold_settings_and_half_precision(
    saved: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    whole = load_checkpoint(saved)
    # A path of this machine is nobody else's business.
    loop = dataclasses.replace(whole.settings.loop, start="/home/somebody/best.pt")
    whole = dataclasses.replace(whole, settings=dataclasses.replace(whole.settings, loop=loop))
    save_weights(whole, tmp_path / "shared.safetensors")
    found = load_checkpoint(tmp_path / "shared.safetensors")
    assert found.settings == tiny_settings("loop.start=random")
    assert (found.step, found.metrics, found.data_sha256) == (12, {"AR@100": 0.25}, "ab" * 32)
    assert (found.training, found.data_folder) == (None, "")
    assert found.versions == whole.versions
    assert set(found.weights) == set(whole.weights)
    for name, value in found.weights.items():
        expected = whole.weights[name]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected)
    model, _ = load_model(tmp_path / "shared.safetensors")
    assert not model.training


def test_weights_beyond_half_precision_are_not_written(saved: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(saved)
    name = next(iter(whole.weights))
    huge = dataclasses.replace(whole, weights={**whole.weights, name: torch.full_like(whole.weights[name], 1e5)})
    with pytest.raises(CheckpointError, match=f"{name}.*float16"):
        save_weights(huge, tmp_path / "shared.safetensors")
    assert not (tmp_path / "shared.safetensors").exists()


@pytest.mark.parametrize("header", ["[" * 100_000, "9" * 5000, "[]", "{"], ids=["deep", "long", "list", "cut"])
def test_weights_with_another_header_are_refused(header: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, metadata={"edgerpn": header}))
    with pytest.raises(CheckpointError, match="weights without settings of edgerpn in the header"):
        load_checkpoint(file)


def test_damaged_or_foreign_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "shared.safetensors"
    save_weights(load_checkpoint(saved), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not weights, or damaged"):
        load_checkpoint(file)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="without settings of edgerpn"):
        load_checkpoint(file)
    save_file({"weight": torch.zeros(2)}, file, metadata={"edgerpn": '{"format": 99}'})
    with pytest.raises(CheckpointError, match="weights of format 99"):
        load_checkpoint(file)


def test_the_general_weights_are_a_checkpoint_and_a_file_of_their_name_comes_first(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, checkpoint = load_model(GENERAL)
    assert checkpoint.settings.model == load_settings().model
    assert sum(value.numel() for value in model.parameters()) > 1_900_000
    saved.rename(tmp_path / GENERAL)
    assert load_checkpoint(GENERAL).step == 12


def test_the_card_of_the_general_weights_names_their_hash() -> None:
    folder = Path(str(resources.files("edgerpn.train") / "weights"))
    (row,) = [line for line in (folder / "edge-general.md").read_text().splitlines() if "`edge-general.saf" in line]
    assert files.sha256(folder / "edge-general.safetensors") in row
