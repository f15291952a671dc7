"""Digests of manifests and artifacts: whether a file is whole, and whether it is the one that its manifest describes.

These are two questions. A copy may break off, and a tool that simplifies a graph or renames a tensor writes a good file
that is no longer the exported one. Nothing here needs the packages onnx or onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.errors import ArtifactChangedError, ArtifactMismatchError, ManifestError
from edgerpn.manifest.parts import Provenance

_NO_DIGEST = b"0" * 64
"""Placeholder of an ONNX file's digest while the digest is computed."""

_GRAPH, _OPSETS, _METADATA = 7, 8, 14
"""Fields of ONNX's ModelProto; every model has the first two."""

_KEY, _VALUE = 1, 2
"""Fields of an entry of its metadata."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of protobuf."""

_logger = logging.getLogger(__name__)


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


def check_onnx(file: Path, expected: Provenance, manifest_name: str, *, verify: bool) -> None:
    """Checks that an ONNX file is the one that its manifest describes.

    Args:
        file: The ONNX file.
        expected: Origin that the manifest beside it states.
        manifest_name: Name of that manifest, for messages.
        verify: False accepts a file that was changed since export, with a warning in the log.

    Raises:
        ArtifactMismatchError: The file is truncated or damaged.
        ArtifactChangedError: It is a whole ONNX file, but another one.
    """
    found, num_bytes = files.sha256(file), file.stat().st_size
    if found == expected.artifact_sha256:
        return
    if not _is_whole_onnx(file):
        wanted = "" if expected.artifact_bytes is None else f", expected {expected.artifact_bytes}"
        raise ArtifactMismatchError(
            f"{file}: truncated or damaged: {num_bytes} bytes{wanted}, which are not a whole ONNX file. Copy it and "
            f"{manifest_name} together again, or export again."
        )
    digests = f"sha256 {found[:16]}..., expected {(expected.artifact_sha256 or 'none')[:16]}..."
    _refuse_changed(file, f"the file that {manifest_name} describes ({digests})", verify=verify)


def check_engine(file: Path, expected: Provenance, manifest_name: str) -> None:
    """Checks that an engine is the one that its manifest describes.

    Raises:
        ArtifactMismatchError: It is another file.
    """
    found, num_bytes = files.sha256(file), file.stat().st_size
    if found == expected.artifact_sha256:
        return
    is_shorter = expected.artifact_bytes is not None and num_bytes < expected.artifact_bytes
    raise ArtifactMismatchError(
        f"{file}: {'truncated, or ' if is_shorter else ''}not the engine that {manifest_name} describes: sha256 "
        f"{found[:16]}..., expected {(expected.artifact_sha256 or 'none')[:16]}... Copy both files of one build "
        "together, or build again."
    )


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


def check_seal(path: Path, digest: str | None, *, verify: bool = True) -> bool:
    """Checks a file that travels without its manifest file against the digest inside.

    Args:
        path: The ONNX file.
        digest: The metadata's value of `DIGEST_KEY`; None when they have no such key.
        verify: As for `check_onnx`.

    Returns:
        False when there is no digest to check against.

    Raises:
        ArtifactChangedError: A byte has changed.
    """
    if digest is None:
        return False
    computed, mark, start = hashlib.sha256(), digest.encode("ascii", "replace"), 0
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        while mark and (end := data.find(mark, start)) >= 0:
            computed.update(view[start:end])
            computed.update(_NO_DIGEST)
            start = end + len(mark)
        computed.update(view[start:])
    if computed.hexdigest() != digest:
        _refuse_changed(path, "the file that was exported, by the digest inside", verify=verify)
    return True


def read_metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of an ONNX file, which exists; of the graph it reads the length only.

    Raises:
        ManifestError: It is not a whole ONNX file, or its metadata are not text.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = [data[place] for number, place in _fields(data) if number == _METADATA]
        texts = [{number: entry[place].decode() for number, place in _fields(entry)} for entry in entries]
    except (ValueError, IndexError) as error:
        raise ManifestError(
            f"{file}: it is truncated, damaged, or not an ONNX file ({error}). Copy it again, or export again."
        ) from error
    return {entry.get(_KEY, ""): entry.get(_VALUE, "") for entry in texts}


def _refuse_changed(file: Path, described: str, *, verify: bool) -> None:
    """Raises, or logs a warning unless `verify`, that a file was changed since export.

    Raises:
        ArtifactChangedError: If `verify`.
    """
    changed = f"{file}: changed since export: a whole ONNX file, but not {described}"
    if verify:
        raise ArtifactChangedError(
            f"{changed}. If a tool changed it on purpose, show that it computes the same and give it a manifest: "
            f"edgerpn check {file.name} --against ORIGINAL.onnx --reseal. If not, the copy is damaged or of another "
            "export: copy it and its manifest together, or export again."
        )
    _logger.warning("%s; it is used as asked, and nothing shows that its proposals are right", changed)


def _is_whole_onnx(file: Path) -> bool:
    """Returns whether a file is as long as its own lengths say, and has what every ONNX model has.

    ONNX is a protobuf message: fields one after the other, each with its number, its wire type and its length. After a
    cut the last one is too long; elsewhere damage that moves bytes leaves numbers that do not exist.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {_GRAPH, _OPSETS} <= {number for number, _ in _fields(data)}
    except (ValueError, IndexError):  # an empty file cannot be mapped; a number breaks off
        return False


def _fields(data: mmap.mmap | bytes) -> Iterator[tuple[int, slice]]:
    """Yields the number of each field of a protobuf message, and the place of its content.

    Raises:
        IndexError: A number breaks off.
        ValueError: A field does not exist in protobuf, or is longer than the message.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        start = position
        if wire_type == _BYTES:
            length, start = _varint(data, position)
            position = start + length
        elif wire_type == _VARINT:
            _, position = _varint(data, position)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            position += 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if not number or position > len(data):
            raise ValueError(f"field {number} ends at {position} of {len(data)} bytes")
        yield number, slice(start, position)


def _varint(data: mmap.mmap | bytes, position: int) -> tuple[int, int]:
    """Returns the number at a position, seven bits in each byte, and the position behind it."""
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
    return value | data[position] << shift, position + 1
