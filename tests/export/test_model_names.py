from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgerpn.errors import EngineLoadError
from edgerpn.export.model_names import find_any_model
from edgerpn.models import GENERAL, GENERAL_WEIGHTS, is_checkpoint


@pytest.fixture
def other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no package that brings models."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())


@pytest.mark.usefixtures("other_packages")
def test_without_an_installed_model_general_is_the_checkpoint_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(GENERAL).mkdir()  # as in a clone of the repository
    assert find_any_model(GENERAL) == GENERAL_WEIGHTS
    assert is_checkpoint(find_any_model(GENERAL))
    with pytest.raises(EngineLoadError, match="general-384x640: no such file"):
        find_any_model("general-384x640")


def test_an_installed_model_comes_before_the_checkpoint(street: Path) -> None:
    info = next(street.parent.glob("*.dist-info"))
    (info / "entry_points.txt").write_text(f"[edgerpn.models]\n{GENERAL} = streetmodels:STREET\n")
    assert find_any_model(GENERAL) == street
    assert not is_checkpoint(find_any_model(GENERAL))


def test_without_pytorch_the_error_says_how_to_install_the_model() -> None:
    code = """
import importlib.metadata, sys
sys.modules["torch"] = None
importlib.metadata.entry_points = lambda **_: ()
from edgerpn.__main__ import main
sys.exit(main(["inspect", "general"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "in a clone of edgerpn: pip install ./general" in done.stderr
