from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable

import pytest

from edgerpn import errors
from edgerpn.errors import ConfigError, DataError, EdgeRpnError, MissingDependencyError, TrainingDivergedError, require
from edgerpn.runtime.sources.failures import CaptureFailedError


def drawn_tree() -> dict[str, str]:
    """Returns class name -> parent's name, from the tree in the module's docstring."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4,})(\w+Error)(?:\((\w+)\))?(?: |$)", line)
        if not match:
            continue
        depth = len(match.group(1))
        stack = [entry for entry in stack if entry[0] < depth]
        parents[match.group(2)] = stack[-1][1] if stack else ""
        if match.group(3):
            parents[f"{match.group(2)} builtin"] = match.group(3)
        stack.append((depth, match.group(2)))
    return parents


def real_tree() -> dict[str, str]:
    """Returns the same from the classes."""
    parents: dict[str, str] = {}
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(cls, Exception):
            continue
        ours, *builtin = cls.__bases__
        parents[name] = ours.__name__ if issubclass(ours, EdgeRpnError) else ""
        parents |= {f"{name} builtin": base.__name__ for base in builtin}
    return parents


def test_the_tree_drawn_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = drawn_tree()
    assert len(drawn) > 15
    assert drawn == real_tree()


def test_a_config_error_puts_its_source_before_every_problem() -> None:
    error = ConfigError(["a: wrong", "b: missing"], source="x.toml")
    assert str(error) == "x.toml: a: wrong\nx.toml: b: missing"
    assert error.problems == ("a: wrong", "b: missing")
    assert str(ConfigError(["a: wrong"])) == "a: wrong"


def test_a_data_error_lists_its_problems_below_the_message() -> None:
    assert str(DataError("train.json: 2 problems", problems=["image 3", "image 4"])) == (
        "train.json: 2 problems\n  image 3\n  image 4"
    )


def test_a_divergence_keeps_where_it_happened() -> None:
    error = TrainingDivergedError("loss is nan", step=12, image_ids=[3, 4], last_good=None)
    assert (error.step, error.image_ids, error.last_good) == (12, (3, 4), None)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["a: wrong", "b: missing"], source="x.toml"),
        DataError("train.json: 2 problems", problems=["image 3", "image 4"]),
        TrainingDivergedError("loss is nan", step=12, image_ids=[3, 4], last_good=None),
        CaptureFailedError("/dev/video9: no such camera", reason="not_found"),
        MissingDependencyError("reading video needs cv2"),
    ],
)
@pytest.mark.parametrize("transfer", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_comes_out_of_another_process_as_it_was(
    error: EdgeRpnError, transfer: Callable[[EdgeRpnError], EdgeRpnError]
) -> None:
    other = transfer(error)
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_require_gives_the_module_that_is_there() -> None:
    assert require("json", extra="onnxruntime", purpose="a test").dumps([1]) == "[1]"


def test_require_says_what_needs_the_module_and_which_extra_brings_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"^reading video needs .*'no_such_module'.*'edgerpn\[opencv\]'"):
        require("no_such_module", extra="opencv", purpose="reading video")


def test_a_missing_dependency_can_be_caught_as_an_import_error() -> None:
    with pytest.raises(ImportError):
        require("no_such_module", extra="opencv", purpose="reading video")
