from __future__ import annotations

import subprocess
import sys

import pytest

import edgerpn
import edgerpn.runtime


def test_the_package_lists_its_names_in_order() -> None:
    assert edgerpn.__all__ == sorted(edgerpn.__all__)
    assert set(edgerpn.__all__) <= set(dir(edgerpn))
    for name in edgerpn.__all__:
        assert getattr(edgerpn, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgerpn' has no attribute 'nonsense'"):
        edgerpn.nonsense  # noqa: B018


def test_a_stage_is_imported_at_first_use() -> None:
    code = (
        "import sys, edgerpn\n"
        "assert not [name for name in sys.modules if name.startswith('edgerpn.runtime')]\n"
        "print(edgerpn.runtime.__name__, edgerpn.Proposals.__name__)\n"
        "assert 'cv2' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "edgerpn.runtime Proposals\n"
