"""A prediction that broke off continues, and its outputs are those of a run in one go."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError
from edgerpn.export import PredictConfig, predict
from edgerpn.export.prediction.journal import Entry, Journal

OUTPUTS: dict[str, Any] = {"to": ["coco", "cvat"], "crops": True, "pictures": True}


@pytest.fixture
def sources(tmp_path: Path, paint: Callable[..., Any], video_path: Path) -> list[str]:
    """Five images, of which one is broken, and a video of 40 frames."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        assert cv2.imwrite(str(folder / f"{number}.png"), paint(96, 160, box=(10, 20, 60, 80), count=number))
    (folder / "3.png").write_bytes(b"broken")
    return [str(folder), str(video_path)]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class BreakError(Exception):
    """Ends a run where a test wants it."""


def break_after(monkeypatch: pytest.MonkeyPatch, count: int, action: Callable[[], None]) -> None:
    """Calls `action` when `count` images are done."""
    add = Journal.add

    def counted(journal: Journal, entry: Entry) -> None:
        add(journal, entry)
        if journal.num_images == count:
            action()

    monkeypatch.setattr(Journal, "add", counted)


def fail() -> None:
    raise BreakError


@pytest.mark.parametrize("count", [2, 20])
def test_a_broken_off_run_continues_to_the_same_outputs(
    count: int, model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PredictConfig(sheet_images=8)
    predict(model_path, sources, tmp_path / "whole", config, **OUTPUTS)
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        break_after(patch, count, fail)
        with pytest.raises(BreakError):
            predict(model_path, sources, broken, config, **OUTPUTS)
    assert not (broken / "results.json").exists()
    # A process that is killed leaves a part of a line behind.
    for name in ("images", "results", "crops"):
        with (broken / ".predict" / f"{name}.part").open("a") as part:
            part.write('{"id": 7, "file_na')
    for name in ("crops/.001.0123abcd.jpg", ".contact-sheet.0123abcd.html"):
        (broken / name).write_text("half")
    summary = predict(model_path, sources, broken, config, **OUTPUTS)
    assert summary.num_resumed == count
    assert (summary.num_images, len(summary.problems)) == (45, 1)
    whole = content_of(tmp_path / "whole")
    assert content_of(broken) == whole
    assert len(whole) > 100


def test_images_whose_results_did_not_reach_the_disk_are_done_again(
    model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model_path, sources, tmp_path / "whole")
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        break_after(patch, 30, fail)
        with pytest.raises(BreakError):
            predict(model_path, sources, broken)
    part = broken / ".predict" / "results.part"
    part.write_bytes(part.read_bytes()[:-500])
    assert 0 < predict(model_path, sources, broken).num_resumed < 30
    assert content_of(broken) == content_of(tmp_path / "whole")


@pytest.mark.parametrize("last", ["contact-sheet.html", "images.json", "predict.json"])
def test_a_run_that_broke_off_at_its_end_continues(
    last: str, model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model_path, sources, tmp_path / "whole", **OUTPUTS)
    broken, replace = tmp_path / "broken", os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name == last:
            raise BreakError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(BreakError):
            predict(model_path, sources, broken, **OUTPUTS)
    assert predict(model_path, sources, broken, **OUTPUTS).num_resumed == 45
    assert content_of(broken) == content_of(tmp_path / "whole")


@pytest.mark.parametrize("is_done", [True, False])
def test_a_work_folder_without_its_plan_counts_for_nothing(
    is_done: bool, model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model_path, sources, tmp_path / "whole", **OUTPUTS)
    out = tmp_path / "out"
    if is_done:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda folder: fail() if Path(folder).name == ".predict" else None)
            with pytest.raises(BreakError):
                predict(model_path, sources, out, **OUTPUTS)
    else:
        (out / ".predict").mkdir(parents=True)
    assert predict(model_path, sources, out, **OUTPUTS).num_resumed == (45 if is_done else 0)
    assert content_of(out) == content_of(tmp_path / "whole")


def test_a_run_that_fails_before_its_first_image_leaves_nothing(
    model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "add", lambda *_: fail())
    for folder, remains in ((tmp_path / "new", False), (tmp_path / "empty", True)):
        if remains:
            folder.mkdir()
        with pytest.raises(BreakError):
            predict(model_path, sources, folder, **OUTPUTS)
        assert folder.exists() == remains
        assert not remains or list(folder.iterdir()) == []


def test_a_signal_stops_a_run_which_continues_when_it_is_called_again(
    model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    words = ["predict", str(model_path), *sources, "-o", str(out)]
    with monkeypatch.context() as patch:
        break_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(words) == 143
    assert "3 images" in (printed := capsys.readouterr().out)
    assert "stopped by SIGTERM; run it again to continue" in printed
    assert main(words) == 0
    assert "3 were done before" in capsys.readouterr().out
    before = content_of(out)
    assert main(words) == 0
    assert "complete already" in capsys.readouterr().out
    assert content_of(out) == before


def test_a_folder_into_which_a_run_writes_is_refused_to_a_second_one(
    model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    refusals: list[str] = []

    def run_second() -> None:
        with pytest.raises(ConfigError) as refused:
            predict(model_path, sources, out)
        refusals.append(str(refused.value))

    with monkeypatch.context() as patch:
        break_after(patch, 3, run_second)
        assert predict(model_path, sources, out).num_images == 45
    assert [f"{out}: process {os.getpid()} on " in refusal for refusal in refusals] == [True]
    predict(model_path, sources, tmp_path / "alone")
    assert content_of(out) == content_of(tmp_path / "alone")


def test_other_results_are_never_overwritten_or_continued(
    model_path: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(model_path, sources[:1], out)
    with pytest.raises(ConfigError, match="this folder holds the results of a run with other settings"):
        predict(model_path, sources[:1], out, PredictConfig(min_score=0.5))
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        break_after(patch, 2, fail)
        with pytest.raises(BreakError):
            predict(model_path, sources[:1], broken)
    with pytest.raises(ConfigError, match="broke off, and it had other settings and inputs"):
        predict(model_path, sources, broken, PredictConfig(top=3))
    # The batch does not change what is found.
    assert predict(model_path, sources[:1], broken, PredictConfig(batch=2)).num_resumed == 2
    other = shutil.copytree(sources[0], tmp_path / "other")  # the same names, sizes and times
    with pytest.raises(ConfigError, match="this folder holds the results of a run with other inputs"):
        predict(model_path, str(other), out)
    first = Path(sources[0]) / "0.png"
    os.utime(first, ns=(0, first.stat().st_mtime_ns + 1))  # another image was written in its place
    with pytest.raises(ConfigError, match="this folder holds the results of a run with other inputs"):
        predict(model_path, sources[:1], out)
    (tmp_path / "new" / "crops").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"not empty \(it holds crops\)"):
        predict(model_path, sources, tmp_path / "new", crops=True)
    assert json.loads((out / "predict.json").read_text())["num_images"] == 5
