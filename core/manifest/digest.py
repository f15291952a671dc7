"""Digests that reveal changes of an artifact and its manifest; they do not prove who made them.

See `edgerpn.manifest`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edgerpn.errors import ArtifactMismatchError

_NO_DIGEST = b"0" * 64


def digest_of(values: dict[str, Any]) -> str:
    """SHA-256 of a manifest's JSON values, without its own digest.

    It is the same after a program has read the JSON and written it again: it ignores spaces, the order of keys, the
    difference between 16 and 16.0, and keys without a value.
    """
    text = json.dumps(_canonical(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def seal(data: bytes) -> bytes:
    """Puts the SHA-256 of an ONNX file into the file itself.

    Args:
        data: The file's bytes, in which the digest's place holds 64 zeros, once.

    Returns:
        The bytes with the digest in that place, computed on the bytes with the zeros.
    """
    if data.count(_NO_DIGEST) != 1:
        raise ValueError(f"data: expected one place for a digest, got {data.count(_NO_DIGEST)}")
    return data.replace(_NO_DIGEST, hashlib.sha256(data).hexdigest().encode("ascii"))


def check_seal(path: Path, digest: str | None) -> bool:
    """Checks a file that travels without its manifest file against the digest inside.

    Args:
        path: The ONNX file.
        digest: The metadata's value of `DIGEST_KEY`; None when they have no such key.

    Returns:
        False when there is no digest to check against.

    Raises:
        ArtifactMismatchError: A byte has changed.
    """
    if digest is None:
        return False
    data = path.read_bytes().replace(digest.encode("ascii", "replace"), _NO_DIGEST)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactMismatchError(
            f"{path}: damaged: its bytes are not those that were exported. Copy the file again, or export again."
        )
    return True
