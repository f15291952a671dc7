"""Names and their prepared vectors, read from a file without pickle."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import SinkError
from edgerpn.golden import NPZ_ERRORS

_FORM = 'np.savez(FILE, names=["cat", ...], vectors=...), with vectors of shape [number of names, D] and of floats'
_FEWEST_NORM = 1e-6


@dataclass(frozen=True, eq=False, slots=True)
class TextVectors:
    """Names to choose from, and where each lies in the encoder's space."""

    names: tuple[str, ...]
    """L different names."""
    vectors: npt.NDArray[np.float32]
    """(L, D) float32, each of length 1."""
    mean: npt.NDArray[np.float32] | None = None
    """(D,) float32, what all vectors of the space have in common and the names do not; None: nothing."""

    def cosines(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the cosines (M, L) of vectors (M, D) with the names; `vectors` have length 1 where `mean` is None."""
        if self.mean is not None:
            rest = vectors - self.mean
            vectors = rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), _FEWEST_NORM)
        found: npt.NDArray[np.float32] = vectors @ self.vectors.T
        return found


def read_text_vectors(path: str | os.PathLike[str]) -> TextVectors:
    """Reads an .npz file with the arrays `names` [L] of texts and `vectors` [L, D] of floats of any length.

    It may have `mean` [D], which `vectors` do not contain.

    Raises:
        SinkError: The file is missing, holds anything else, or a name twice.
    """
    arrays = _read_arrays(path)
    names, vectors = arrays["names"], arrays["vectors"]
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise SinkError(f"{path}: names: expected texts [L], got {_show(names)}. Write {_FORM}.")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(names) or not vectors.shape[1]:
        raise SinkError(f"{path}: vectors: expected floats [{len(names)}, D], got {_show(vectors)}. Write {_FORM}.")
    texts = [str(name) for name in names]
    twice = sorted(name for name, count in Counter(texts).items() if count > 1)
    if twice or "" in texts:
        found = f"{', '.join(map(repr, twice))} more than once" if twice else "an empty one"
        raise SinkError(f"{path}: names: expected different names, got {found}. Average the vectors of one name.")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for name, length in zip(texts, lengths, strict=True):
        if not np.isfinite(length) or length < _FEWEST_NORM:
            raise SinkError(f"{path}: vectors: expected finite ones, not zero, got the length {length} for {name!r}")
    mean = arrays.get("mean")
    if mean is not None and (mean.dtype.kind != "f" or mean.shape != vectors.shape[1:] or not np.isfinite(mean).all()):
        raise SinkError(f"{path}: mean: expected finite floats [{vectors.shape[1]}], got {_show(mean)}")
    return TextVectors(
        tuple(texts),
        (vectors / lengths[:, None]).astype(np.float32),
        None if mean is None else mean.astype(np.float32),
    )


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        # Without pickle, so that no code in the file runs. Opened here, because a wrong file would stay open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("names", "vectors", *({"mean"} & set(arrays)))}
    except OSError as error:
        raise SinkError(f"{path}: cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise SinkError(f"{path}: {error.args[0]}. Write {_FORM}.") from error
    except NPZ_ERRORS as error:
        raise SinkError(f"{path}: expected an .npz file without pickled objects ({error}). Write {_FORM}.") from error


def _show(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
