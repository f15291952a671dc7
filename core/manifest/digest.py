"""Digests by which an artifact and its manifest show that nobody changed them; they do not say who made them.

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

    A program that reads JSON and writes it again does not change it: neither spaces nor the order of keys count, nor
    whether a whole number is written as 16 or 16.0, nor whether a key without a value is there.
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
        The bytes with the digest in that place. It is of the bytes with the zeros.
    """
    if data.count(_NO_DIGEST) != 1:
        raise ValueError(f"data: expected one place for a digest, got {data.count(_NO_DIGEST)}")
    return data.replace(_NO_DIGEST, hashlib.sha256(data).hexdigest().encode("ascii"))


def check_seal(path: Path, digest: str | None) -> bool:
    """Whether a file that travels without its manifest file is what was sealed.

    Args:
        path: The ONNX file.
        digest: What its metadata hold under `DIGEST_KEY`; None when there is none.

    Returns:
        Whether it could be checked at all.

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
