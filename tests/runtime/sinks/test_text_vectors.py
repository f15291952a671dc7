"""Names and vectors from a file: of length 1, without pickle, and every other content is one clear error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.sinks.text_vectors import read_text_vectors

NAMES = np.array(["cat", "dog"])
VECTORS = np.array([[3, 4, 0], [0, 0, 0.5]], np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_of_any_length_and_precision_get_length_1(dtype: type[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", names=NAMES, vectors=VECTORS.astype(dtype), logit_scale=100.0)
    texts = read_text_vectors(tmp_path / "labels.npz")
    assert texts.names == ("cat", "dog")
    assert texts.vectors.dtype == np.float32
    np.testing.assert_allclose(texts.vectors, np.array([[0.6, 0.8, 0], [0, 0, 1]]), atol=1e-6)


def test_a_mean_is_taken_from_the_vectors_that_are_compared(tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", names=NAMES, vectors=VECTORS, mean=np.array([0.0, 0.0, 0.5]))
    cosines = read_text_vectors(tmp_path / "labels.npz").cosines(np.array([[0.3, 0.4, 0.5], [0, 0, 1]], np.float32))
    np.testing.assert_allclose(cosines, [[1, 0], [0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        pytest.param({"names": NAMES}, "vectors is not a file in the archive", id="no vectors"),
        pytest.param({"names": np.array([1, 2]), "vectors": VECTORS}, r"expected texts \[L\], got int64", id="ids"),
        pytest.param({"names": NAMES[:0], "vectors": VECTORS[:0]}, r"names: expected texts \[L\]", id="empty"),
        pytest.param({"names": NAMES, "vectors": VECTORS[:1]}, r"floats \[2, D\], got float32 \[1, 3\]", id="too few"),
        pytest.param({"names": NAMES, "vectors": VECTORS[0]}, r"floats \[2, D\], got float32 \[3\]", id="rank 1"),
        pytest.param({"names": NAMES, "vectors": VECTORS.astype(int)}, r"got int64 \[2, 3\]", id="whole numbers"),
        pytest.param({"names": NAMES[[0, 0]], "vectors": VECTORS}, "got 'cat' more than once", id="a name twice"),
        pytest.param({"names": np.array(["cat", ""]), "vectors": VECTORS}, "got an empty one", id="an empty name"),
        pytest.param({"names": NAMES, "vectors": VECTORS * [[1], [0]]}, "length 0.0 for 'dog'", id="zero"),
        pytest.param({"names": NAMES, "vectors": VECTORS * np.nan}, "length nan for 'cat'", id="not finite"),
        pytest.param(
            {"names": NAMES, "vectors": VECTORS, "mean": VECTORS}, r"mean: expected .* \[3\]", id="many means"
        ),
        pytest.param({"names": NAMES.astype(object), "vectors": VECTORS}, "without pickled objects", id="pickle"),
    ],
)
def test_other_arrays_are_one_clear_error(arrays: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays)
    with pytest.raises(SinkError, match=problem) as caught:
        read_text_vectors(path)
    assert str(caught.value).startswith(f"{path}: ")


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, VECTORS)
    return file.getvalue()


def cut_off(path: Path) -> None:
    np.savez(path, names=NAMES, vectors=VECTORS)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b""), "expected an .npz file"),
        (lambda path: path.write_text("cat,0.1,0.2"), "expected an .npz file"),
        (lambda path: path.write_bytes(npy()), "expected an .npz file"),
        (cut_off, "expected an .npz file"),
    ],
    ids=["missing", "folder", "empty", "text", "npy", "cut off"],
)
def test_other_files_are_one_clear_error(write: Callable[[Path], object], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    write(path)
    with pytest.raises(SinkError, match=problem):
        read_text_vectors(path)
