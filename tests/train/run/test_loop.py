"""Real training on a tiny data set: it learns, is deterministic, and stops and resumes."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from edgerpn import settings
from edgerpn.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, TrainingDivergedError
from edgerpn.train.checkpoint import load_checkpoint, load_model, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.data.coco import read_coco
from edgerpn.train.data.loader import TrainLoader
from edgerpn.train.learning.loss import LossSums
from edgerpn.train.run import loop
from edgerpn.train.run.folder import RunFolder, read_log
from edgerpn.train.run.loop import TrainResult, run_training
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import loss_sums, take_step

MakeSettings = Callable[..., TrainSettings]
Start = Callable[..., TrainResult]
Copy = Callable[[str], RunFolder]
# 24 steps, evaluated at 5, 10, 15, 20 and 24: interruptions there fall into the middle of an epoch.
SHORT = ("loop.epochs=6", "loop.evaluations=5")


@pytest.fixture
def start(data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings) -> Start:
    """Trains into `tmp_path` / name with tiny settings and further `--set` texts."""

    def run(name: str, *overrides: str, **options: object) -> TrainResult:
        return run_training(tiny_settings(*overrides), data=data_folder, output=tmp_path / name, **options)  # type: ignore[arg-type]

    return run


def weights(file: Path) -> dict[str, Tensor]:
    return load_checkpoint(file).weights


def are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def losses(history: Sequence[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in history if "loss" in row]


def interrupt_at_first_evaluation(line: str) -> None:
    """For `log`: sends the process a real SIGINT, once."""
    if line.startswith("step 5,"):
        os.kill(os.getpid(), signal.SIGINT)


def test_recall_rises_on_the_validation_images(start: Start) -> None:
    beginning = start("beginning", "loop.epochs=1")
    result = start(
        "run",
        "loop.epochs=30",
        "loop.evaluations=3",
        "optimizer.learning_rate=5e-3",
        "optimizer.warmup_steps=5",
        "optimizer.ema_decay=0.9",
        "optimizer.ema_warmup_steps=20",
    )
    recalls = [row["AR@100"] for row in result.history if "AR@100" in row]
    assert len(recalls) == 3
    assert max(recalls) > 0.3
    assert max(recalls) > beginning.metrics["AR@100"] + 0.1
    assert sum(losses(result.history)[-10:]) < 0.6 * sum(losses(result.history)[:10])
    assert result.metrics["AR@100"] == pytest.approx(max(recalls), abs=1e-6)
    best = load_checkpoint(result.best)
    assert best.metrics == result.metrics
    assert best.step == next(row["step"] for row in result.history if row.get("AR@100") == max(recalls))
    assert best.training is None


def test_no_second_run_writes_into_the_folder_of_a_running_one(start: Start, tmp_path: Path) -> None:
    refused: list[str] = []

    def try_again(line: str) -> None:
        if line.startswith("step 10,"):
            before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}
            with pytest.raises(ConfigError) as error:
                start("run", *SHORT, "loop.seed=5", resume=True)
            refused.append(str(error.value))
            assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before

    result = start("run", *SHORT, log=try_again)
    assert refused == [
        f"{tmp_path / 'run'}: process {os.getpid()} on {os.uname().nodename} is writing into this folder; "
        "wait for its end, or name another folder"
    ]
    assert len([row for row in result.history if "AR@100" in row]) == 5
    start("run", *SHORT, resume=True)  # it has ended, and let go of the folder


def test_the_network_overfits_one_batch_without_augmentation(
    data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    folder = tmp_path / "one-batch"
    folder.mkdir()
    shutil.copytree(data_folder / "images", folder / "images")
    for split in ("train", "val"):
        shutil.copy(data_folder / "val.json", folder / f"{split}.json")
    overrides = (
        "data.batch_size=12",
        "data.augment={flip_probability=0.0, scale_range=[1.0, 1.0], aspect_jitter=0.0, color_probability=0.0, "
        "mosaic_probability=0.0}",
        "loop.epochs=120",
        "optimizer.learning_rate=1e-2",
        "optimizer.warmup_steps=5",
        "optimizer.ema_decay=0.0",
    )
    result = run_training(tiny_settings(*overrides), data=folder, output=tmp_path / "run")
    found = losses(result.history)
    assert len(found) == 120
    assert found[-1] < found[0] / 4
    assert result.metrics["recall@100-iou50"] == 1.0
    assert result.metrics["AR@100"] > 0.6


@pytest.fixture(scope="module")
def uninterrupted(
    data_folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_texts: tuple[str, ...]
) -> TrainResult:
    """A whole run with `SHORT`, to compare others with."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_training(settings.load(TrainSettings, overrides=(*tiny_texts, *SHORT)), data=data_folder, output=out)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(start: Start, uninterrupted: TrainResult) -> None:
    again = start("again", *SHORT)
    assert are_equal(weights(again.last), weights(uninterrupted.last))
    assert losses(again.history) == losses(uninterrupted.history)
    other = start("other", *SHORT, "loop.seed=1")
    assert not are_equal(weights(other.last), weights(uninterrupted.last))


def test_a_resumed_run_ends_as_an_uninterrupted_one(start: Start, uninterrupted: TrainResult) -> None:
    part = start("run", *SHORT, log=interrupt_at_first_evaluation)
    assert part.interrupted
    assert load_checkpoint(part.last).step == 5
    assert not are_equal(weights(part.last), weights(uninterrupted.last))
    whole = start("run", *SHORT, resume=True)
    assert not whole.interrupted
    found, expected = load_checkpoint(whole.last), load_checkpoint(uninterrupted.last)
    assert found.step == expected.step == 24
    assert are_equal(found.weights, expected.weights)
    assert found.training is not None
    assert expected.training is not None
    assert are_equal(found.training["model"], expected.training["model"])
    assert are_equal(weights(whole.best), weights(uninterrupted.best))
    assert whole.metrics == uninterrupted.metrics
    assert [row["step"] for row in whole.history] == [row["step"] for row in uninterrupted.history]
    assert losses(whole.history) == pytest.approx(losses(uninterrupted.history), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_of_several_passes_a_step_ends_as_an_uninterrupted_one(start: Start) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("step 3,"):
            os.kill(os.getpid(), signal.SIGINT)

    passes = ("loop.epochs=3", "loop.evaluations=4", "loop.accumulate=2", "assign.samples_per_image=32")
    whole = start("whole", *passes)
    assert start("run", *passes, log=interrupt).interrupted
    again = start("run", *passes, resume=True)
    assert are_equal(weights(again.last), weights(whole.last))
    assert losses(again.history) == pytest.approx(losses(whole.history), rel=1e-5)


def test_resuming_a_finished_run_changes_nothing(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    before, metrics = weights(done.last), load_checkpoint(done.best).metrics
    again = start("run", "loop.epochs=1", resume=True)
    assert are_equal(weights(again.last), before)
    assert again.metrics == metrics
    assert not again.interrupted


def test_a_finished_run_can_be_lengthened(start: Start, copy_of_finished: Copy) -> None:
    copy_of_finished("run")
    longer = start("run", "loop.epochs=2", resume=True)
    assert load_checkpoint(longer.last).step == 8
    assert [row["step"] for row in longer.history if "loss" in row] == list(range(1, 9))


def claim_best(run: RunFolder) -> None:
    """Lets a finished run have best figures that it never reaches again."""
    last = load_checkpoint(run.last)
    assert last.training is not None
    last.training["progress"]["best_metrics"] = {"AR@100": 2.0}
    save_checkpoint(last, run.last)


def test_a_run_whose_best_checkpoint_is_gone_writes_it_again(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    claim_best(done)
    done.best.unlink()
    said: list[str] = []
    result = start("run", "loop.epochs=1", resume=True, log=said.append)
    assert load_checkpoint(result.best).metrics == result.metrics
    assert result.metrics["AR@100"] <= 1
    assert sum("best.pt is missing, so the best figures so far do not count" in line for line in said) == 1


def test_the_waiting_of_a_resumed_run_is_a_share_of_its_own_time(
    start: Start, copy_of_finished: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = copy_of_finished("run")
    said: list[str] = []
    last = load_checkpoint(done.last)
    assert last.training is not None
    last.training["progress"]["seconds"] = 1e5
    save_checkpoint(last, done.last)
    read = TrainLoader.steps

    def slow(*arguments: int, **options: int) -> Iterator[tuple[TrainBatch, ...]]:
        for step in read(*arguments, **options):  # type: ignore[arg-type]
            time.sleep(0.5)
            yield step

    monkeypatch.setattr(TrainLoader, "steps", slow)
    # A busy machine may compute for much longer than it waits here.
    monkeypatch.setattr(loop, "_HIGH_DATA_WAIT", 0.01)
    start("run", "loop.epochs=2", resume=True, log=said.append)
    assert any("of its time waiting for images" in line for line in said)


def test_a_signal_during_the_last_evaluation_leaves_a_complete_run(start: Start) -> None:
    said: list[str] = []

    def interrupt_at_the_end(line: str) -> None:
        said.append(line)
        if line.startswith("step 4,"):
            signal.raise_signal(signal.SIGTERM)

    result = start("run", "loop.epochs=1", log=interrupt_at_the_end)
    assert (result.interrupted, load_checkpoint(result.last).step) == (False, 4)
    assert not any("continue with --resume" in line for line in said)


def test_a_run_that_is_shortened_ends_with_an_evaluation(start: Start) -> None:
    def interrupt_at_step_6(run: TrainingRun, batch: TrainBatch, part: int) -> LossSums:
        if run.progress.step == 5:
            signal.raise_signal(signal.SIGINT)
        return loss_sums(run, batch, part)

    assert start("run", "loop.epochs=2", "loop.evaluations=2", loss_function=interrupt_at_step_6).interrupted
    said: list[str] = []
    result = start("run", "loop.epochs=1", resume=True, log=said.append)
    assert [row["step"] for row in result.history if "AR@100" in row] == [4, 6]
    assert sum("its loop.epochs are over; a larger --epochs" in line for line in said) == 1


def test_a_run_resumes_near_the_end_of_an_epoch_that_has_become_shorter(
    start: Start, data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    def interrupt_at_step_14(run: TrainingRun, batch: TrainBatch, part: int) -> LossSums:
        if run.progress.step == 13:
            signal.raise_signal(signal.SIGINT)
        return loss_sums(run, batch, part)

    data = tmp_path / "data"
    shutil.copytree(data_folder, data)
    texts = ("data.batch_size=1", 'data.allow=["images"]')
    run = functools.partial(run_training, data=data, output=tmp_path / "run")
    assert run(tiny_settings(*texts), loss_function=interrupt_at_step_14).interrupted
    for number in (100, 101, 102):
        (data / "images" / f"{number}.png").unlink()
    result = run(tiny_settings(*texts), resume=True)
    last = load_checkpoint(result.last)
    assert last.step == 2 * 13
    assert (last.training or {})["progress"]["epoch"] == 1


@pytest.mark.parametrize("text", ["step;epoch;loss\n1;0;2,5\n", "step,epoch\n1,0,2\n", "epoch,loss\n0,2.5\n"])
def test_a_log_that_another_program_changed_is_one_error(text: str, start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    done.log.write_text(text)
    with pytest.raises(CheckpointError, match=r"log\.csv: expected the log as edgerpn train wrote it.*or remove it"):
        start("run", "loop.epochs=1", resume=True)
    done.log.unlink()
    assert not start("run", "loop.epochs=1", resume=True).history


def test_best_figures_on_other_validation_annotations_do_not_count(
    copy_of_finished: Copy, data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    done = copy_of_finished("run")
    claim_best(done)
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(data_folder / "images")
    shutil.copy(data_folder / "train.json", data)
    shutil.copy(data_folder / "val.json", data)

    said: list[str] = []
    longer = tiny_settings("loop.epochs=2")
    run_training(longer, data=data, output=tmp_path / "run", resume=True, log=said.append)
    assert load_checkpoint(done.best).step == 4
    assert not any("have changed" in line for line in said)

    (data / "val.json").write_text((data_folder / "val.json").read_text() + "\n")
    longer = tiny_settings("loop.epochs=3")
    result = run_training(longer, data=data, output=tmp_path / "run", resume=True, log=said.append)
    assert load_checkpoint(done.best).step == 12
    assert result.metrics == load_checkpoint(done.best).metrics
    assert sum("the validation annotations have changed" in line for line in said) == 1


def test_best_figures_on_other_validation_images_do_not_count(
    copy_of_finished: Copy, data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings
) -> None:
    done = copy_of_finished("run")
    claim_best(done)
    data = tmp_path / "data"
    shutil.copytree(data_folder, data)
    said: list[str] = []

    def resume(epochs: int) -> TrainResult:
        longer = tiny_settings(f"loop.epochs={epochs}", 'data.allow=["images"]')
        return run_training(longer, data=data, output=tmp_path / "run", resume=True, log=said.append)

    assert resume(2).metrics == {"AR@100": 2.0}
    assert load_checkpoint(done.best).step == 4

    (data / "images" / "503.png").unlink()
    assert resume(3).metrics == resume(3).metrics == load_checkpoint(done.best).metrics
    assert load_checkpoint(done.best).step == 12
    assert sum("other validation images than before are usable" in line for line in said) == 1


def test_best_figures_of_another_proposal_stage_do_not_count(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    claim_best(done)
    said: list[str] = []
    # Evaluations have counts of their own.
    counts = ("proposals.num_proposals=7", "proposals.score_threshold=0.5")
    assert start("run", "loop.epochs=1", *counts, resume=True, log=said.append).metrics == {"AR@100": 2.0}
    assert not any("have changed" in line for line in said)

    result = start("run", "loop.epochs=2", "proposals.nms_iou=0.3", resume=True, log=said.append)
    assert sum("the settings of proposals have changed" in line for line in said) == 1
    best = load_checkpoint(done.best)
    assert (best.step, best.metrics, best.settings.proposals.nms_iou) == (8, result.metrics, 0.3)


def test_a_diverging_run_stops_and_names_step_images_and_checkpoint(
    start: Start, data_folder: Path, tiny_settings: MakeSettings, copy_of_finished: Copy
) -> None:
    config = tiny_settings().data
    records = read_coco(data_folder / "train.json", data_folder / "images").records
    with TrainLoader(records, config, seed=0) as loader:
        batches = [batch.image_ids for epoch in (0, 1) for batch in loader.epoch(epoch)]
    wild = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "optimizer.final_learning_rate=1.0")
    with pytest.raises(TrainingDivergedError, match=r"at step 1 .*Last good checkpoint: none yet") as fresh:
        start("fresh", *wild)
    assert fresh.value.step == 1
    assert fresh.value.last_good is None
    assert list(fresh.value.image_ids) == batches[1]

    good = copy_of_finished("good")
    before = weights(good.last)
    with pytest.raises(TrainingDivergedError) as later:
        start("good", *wild, resume=True)
    assert later.value.step == 5
    assert later.value.last_good == str(good.last)
    assert str(good.last) in str(later.value)
    assert list(later.value.image_ids) == batches[5]
    assert are_equal(weights(good.last), before)
    assert all(torch.isfinite(value).all() for value in before.values())


def test_a_folder_that_holds_a_run_is_refused(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    before = done.last.read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run; continue it with --resume"):
        start("run", "loop.epochs=1")
    assert done.last.read_bytes() == before


def test_there_must_be_something_to_resume(start: Start, copy_of_finished: Copy) -> None:
    with pytest.raises(ConfigError, match=r"nothing to resume, last.pt is missing; start without --resume$"):
        start("run", resume=True)
    copy_of_finished("best-only").last.unlink()
    with pytest.raises(ConfigError, match=r"last.pt is missing; start without --resume in another folder$"):
        start("best-only", resume=True)
    with pytest.raises(ConfigError, match=r"has no last.pt to resume from; choose another folder"):
        start("best-only")


def test_resuming_with_another_network_is_refused(start: Start, copy_of_finished: Copy) -> None:
    copy_of_finished("run")
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        start("run", "loop.epochs=2", "model.head_channels=24", resume=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "model.anchors.sizes_px=[[16.0], [32.0], [64.0]]",
            "sizes_px = ((32.0,), (64.0,), (128.0,)) and cannot continue with ((16.0,), (32.0,), (64.0,))",
        ),
        ("model.anchors.center_offset=0", "model.anchors.center_offset = 0.5 and cannot continue with 0.0"),
        ("model.std_bgr=[1, 1, 1]", "model.std_bgr = (57.375, 57.12, 58.395) and cannot continue with (1.0, 1.0, 1.0)"),
        ("data.input_hw=[64, 96]", "data.input_hw = (96, 96) and cannot continue with (64, 96)"),
        ("data.exif=apply", "data.exif = ignore and cannot continue with apply"),
    ],
)
def test_settings_that_change_the_meaning_of_a_checkpoint_are_refused(
    text: str, told: str, start: Start, copy_of_finished: Copy
) -> None:
    done = copy_of_finished("run")
    with pytest.raises(CheckpointError, match=rf"the run has .*{re.escape(told)}.*new run .* --from {done.last}"):
        start("run", "loop.epochs=2", text, resume=True)


def test_the_time_of_day_or_the_largest_number_can_be_the_seed(start: Start) -> None:
    for seed in (20261201123456, 2**64 - 1):
        assert start(f"{seed}", "loop.epochs=1", f"loop.seed={seed}", "assign.samples_per_image=16").history


def test_a_run_resumes_with_another_name_of_its_reading(start: Start, copy_of_finished: Copy) -> None:
    copy_of_finished("run")
    assert load_checkpoint(start("run", "loop.epochs=2", "data.exif=ignore", resume=True).last).step == 8


def test_resuming_from_a_checkpoint_without_training_state_is_refused(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    shutil.copy(done.best, done.last)
    with pytest.raises(CheckpointError, match="weights without the training state"):
        start("run", "loop.epochs=2", resume=True)


@pytest.mark.usefixtures("with_plots")
def test_the_run_folder_holds_settings_log_and_plot(start: Start, tiny_settings: MakeSettings) -> None:
    result = start("run", "loop.epochs=3")
    out = result.last.parent
    assert sorted(p.name for p in out.iterdir()) == [
        "best.pt", "config.toml", "last.pt", "lock", "log.csv", "loss.png", "versions.json",
    ]  # fmt: skip
    expected = tiny_settings("loop.epochs=3", "loop.start=random")
    assert settings.load(TrainSettings, files=[out / "config.toml"]) == expected
    rows = read_log(out / "log.csv")
    assert [row["step"] for row in rows] == [*range(1, 13), 12]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["AR@100"] == pytest.approx(result.metrics["AR@100"], abs=1e-5)
    assert all(row["images_per_s"] > 0 and row["grad_norm"] > 0 for row in rows[:-1])
    picture = (out / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000
    model, checkpoint = load_model(result.best)
    assert not model.training
    assert (
        checkpoint.data_sha256
        == read_coco(Path(checkpoint.data_folder) / "train.json", Path(checkpoint.data_folder) / "images").sha256
    )


def test_a_run_by_the_clock_ends_with_an_evaluation(start: Start) -> None:
    result = start("run", "loop.minutes=0.015", "loop.evaluations=2")
    assert "AR@100" in result.history[-1]
    # 0.9 s in all; a slow machine may spend the second half of them on the evaluation after the first.
    seconds = [row["seconds"] for row in result.history if "loss" in row]
    assert 0.44 <= seconds[-1] < 30
    assert load_checkpoint(result.last).step == result.history[-1]["step"]


def test_evaluations_that_become_due_during_another_one_are_left_out(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def lasting(function: Callable[..., object], seconds: float) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal now_s
            now_s += seconds
            return function(*arguments)

        return call

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(loop, "take_step", lasting(take_step, 5))
    monkeypatch.setattr(loop, "_detect_all", lasting(loop._detect_all, 16))
    result = start("run", "loop.minutes=1", "loop.evaluations=4")
    # From second 15 to 31, beyond the 30 of the next; then at 46, to the end.
    assert [row["step"] for row in result.history if "AR@100" in row] == [3, 6]


def test_bad_data_is_refused_before_the_run_begins(tmp_path: Path, tiny_settings: MakeSettings) -> None:
    with pytest.raises(DataError, match=r"train\.json"):
        run_training(tiny_settings(), data=tmp_path, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["file", "file/run", "closed/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_data_are_read(
    name: str, tmp_path: Path, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    # Nothing is closed to the superuser, who may run the tests.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / "closed")
    with pytest.raises(ConfigError, match=r"closed: this user cannot write here|file: this is a file"):
        run_training(tiny_settings(), data=tmp_path, output=tmp_path / name)


ENTER_AS_NOBODY = """
import os, pathlib, sys
from edgerpn.errors import ConfigError
from edgerpn.train.run.folder import RunFolder
if os.geteuid() == 0:
    os.setuid(65534)
try:
    RunFolder(pathlib.Path(sys.argv[1])).check_new()
except ConfigError as error:
    print(error)
"""


def test_a_folder_behind_one_that_nobody_can_enter_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    words = [sys.executable, "-c", ENTER_AS_NOBODY, str(closed / "deeper" / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    # As the superuser's, a folder above it is closed too.
    assert ": this user cannot write here" in done.stdout
    assert str(closed).startswith(done.stdout.partition(":")[0])


def test_a_run_whose_folder_cannot_be_written_is_not_resumed(
    start: Start, copy_of_finished: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = copy_of_finished("run")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != done.path)
    monkeypatch.setattr("edgerpn.train.run.setup.find_train_and_val", lambda *_: pytest.fail("the data are read"))
    with pytest.raises(ConfigError, match="run: this user cannot write here"):
        start("run", "loop.epochs=2", resume=True)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_without_tensorboard_its_setting_names_the_missing_package(start: Start) -> None:
    with pytest.raises(MissingDependencyError, match=r"edgerpn\[tensorboard\]"):
        start("run", "loop.tensorboard=true")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_the_tensorboard_log_is_written(start: Start) -> None:
    result = start("run", "loop.tensorboard=true")
    assert list(result.last.parent.glob("events.out.tfevents.*"))


def test_tensorboard_shows_a_repeated_step_once(start: Start) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    texts = ("loop.epochs=2", "loop.evaluations=2", "loop.tensorboard=true")
    first = start("run", *texts)
    # As after a kill: the newest state is older than the figures.
    first.last.with_name("last-previous.pt").replace(first.last)
    assert start("run", *texts, resume=True).last == first.last
    figures = accumulator.EventAccumulator(str(first.last.parent))
    figures.Reload()
    assert [event.step for event in figures.Scalars("train/loss")] == list(range(1, 9))
    assert [event.step for event in figures.Scalars("val/AR@100")] == [4, 8]


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once_for_each_size_of_views(
    start: Start, uninterrupted: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs: list[torch.fx.GraphModule] = []

    def note(program: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        programs.append(program)
        return program

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=note))
    result = start("run", *SHORT, "loop.compile=true")
    assert len(programs) == 2
    assert are_equal(weights(result.last), weights(uninterrupted.last))


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_trains_without(
    uninterrupted: TrainResult, data_folder: Path, tiny_texts: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sets = [word for text in (*tiny_texts, *SHORT, "loop.compile=true") for word in ("--set", text)]
    # In a process of its own, because PyTorch remembers what it compiled.
    done = subprocess.run(
        [sys.executable, "-m", "edgerpn", "train", "--data", str(data_folder), "--out", str(out), *sets],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loop.compile: not possible here, training continues without it (" in done.stdout
    assert are_equal(weights(out / "last.pt"), weights(uninterrupted.last))
