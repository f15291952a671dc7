from __future__ import annotations

import io
import sys

import pytest

from edgerpn.progress import progress, track


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_printed_when_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "reading") as bar:
        bar.update()
        bar.set_postfix_str("half way")
    assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_label_total_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress(30, "reading", unit="img") as bar:
        bar.update(30)
        bar.set_postfix_str("loss 0.5")
    shown = terminal.getvalue()
    assert "reading" in shown
    assert "/30" in shown
    assert "img" in shown
    assert "loss 0.5" in shown


def test_track_takes_the_total_from_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(track(range(7), "counting")) == list(range(7))
    assert "/7" in terminal.getvalue()


def test_track_passes_on_items_of_unknown_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track((i * i for i in range(4)), "squares")) == [0, 1, 4, 9]


def test_a_terminal_without_tqdm_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(track([1, 2], "counting")) == [1, 2]
    assert terminal.getvalue() == ""


def test_an_error_inside_passes_through_and_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())

    def fail() -> None:
        with progress(3, "reading"):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
