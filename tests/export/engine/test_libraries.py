"""Libraries that do not import, and the choice of `auto`."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerpn import settings
from edgerpn.errors import BuildError, ConfigError, MissingDependencyError
from edgerpn.export.engine.build import probe
from edgerpn.export.engine.options import BuildConfig

FAKES = {
    "class Builder: pass\n__version__ = '1.0.0'": (BuildError, r"tensorrt_rtx 1\.0\.0 is too old: expected 1\.4"),
    "__version__ = '1.7.1'": (BuildError, "has no builder"),
    "raise ImportError('libcudart.so.13: cannot open shared object file')": (BuildError, "CUDA"),
    "raise ModuleNotFoundError('gone', name='tensorrt_rtx')": (MissingDependencyError, r"edgerpn\[rtx\]"),
    "import os; os.abort()": (BuildError, "importing the library failed: the library crashed .SIGABRT."),
}


@pytest.mark.parametrize("code", FAKES)
def test_a_library_that_does_not_import_is_a_diagnosed_state(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error, message = FAKES[code]
    with pytest.raises(error, match=message):
        probe("tensorrt-rtx")


@pytest.mark.rtx
def test_auto_names_the_reason_for_not_using_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvdla_compiler.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe("auto")
    assert found.library == "tensorrt-rtx"
    reason = "libnvdla_compiler" if found.machine.gpu else "no NVIDIA GPU or driver"
    assert reason in "\n".join(found.notes)
    with pytest.raises(BuildError, match="libnvdla_compiler"):
        probe("tensorrt")


def test_settings_out_of_range_are_refused_with_their_name() -> None:
    for text in ("batch=[2,1,4]", "optimization_level=6", "workspace_mib=0", "compute_capabilities=['sm86']"):
        with pytest.raises(ConfigError, match=text.partition("=")[0]):
            settings.load(BuildConfig, overrides=[text])
