"""KServe's protocol by HTTP, with the standard library: tensors travel as bytes behind a JSON header."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError
from edgerpn.manifest import METADATA_KEY
from edgerpn.runtime.backends.served.client import (
    DTYPES,
    ServedAddress,
    ServedModel,
    ServerAwayError,
    ServerRefusalError,
    authorization,
)
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.endpoint import tls_context
from edgerpn.runtime.redaction import redact

_HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_ANSWER_BYTES = 1 << 30
_SHOWN_BYTES = 500
# Answers of servers and proxies that pass.
_AWAY = (408, 425, 429, 502, 503, 504)
_LOGIN = (401, 403, 407)
_MALFORMED = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
"""Errors of reading JSON that has another form than expected."""
_NUMPY_TYPES = {sent: np.dtype(name) for name, sent in DTYPES.items()}


class HttpServerClient:
    """Keeps a connection for each thread that asks at the same time; see `ServerClient`."""

    def __init__(self, address: ServedAddress, config: ServerConfig) -> None:
        """Reads secrets and certificates; the first request connects.

        Raises:
            EngineLoadError: A secret or a certificate cannot be read.
        """
        self._address = address
        self._timeout_s = config.timeout_s
        self._headers = {"User-Agent": "edgerpn", **authorization(address, config)}
        self._context = _tls(config) if address.is_tls else None
        version = f"/versions/{address.version}" if address.version else ""
        self._path = f"/v2/models/{quote(address.model, safe='')}{version}"
        self._idle: list[http.client.HTTPConnection] = []
        self._open: set[http.client.HTTPConnection] = set()
        self._is_closed = False

    def describe(self) -> ServedModel:
        server, metadata, config = self._get("/v2"), self._get(self._path), self._config()
        try:
            return ServedModel(
                server=f"{server['name']} {server['version']}",
                manifest=_manifest_in(config),
                max_batch=max(0, int(config.get("max_batch_size", 0))),
                tensors={
                    item["name"]: (item["datatype"], tuple(map(int, item["shape"])))
                    for item in (*metadata["inputs"], *metadata["outputs"])
                },
            )
        except _MALFORMED as error:
            raise ServerRefusalError("the server does not describe the model as KServe's protocol demands") from error

    def manifest_text(self) -> str | None:
        try:
            return _manifest_in(self._config())
        except _MALFORMED as error:
            raise ServerRefusalError("the server does not describe the model as KServe's protocol demands") from error

    def is_ready(self) -> bool:
        try:
            self._request("GET", f"{self._path}/ready")
        except ServerRefusalError as error:
            if error.is_login:
                raise
            return False
        return True

    def infer(self, name: str, frames: npt.NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        pixels = frames.data.cast("B")
        tensor = {"name": name, "shape": frames.shape, "datatype": "UINT8"}
        asked = {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(pixels)}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}} for output in outputs],
        }
        header = json.dumps(asked).encode()
        answer, body = self._request(
            "POST",
            f"{self._path}/infer",
            (header, pixels),
            {_HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
        )
        try:
            return _read_outputs(body, int(answer.getheader(_HEADER_LENGTH) or len(body)))
        except _MALFORMED as error:
            raise ServerRefusalError(f"its answer is not one of KServe's protocol ({error!r})") from error

    def close(self) -> None:
        self._is_closed = True
        for connection in list(self._open):
            # Wakes a thread that waits for an answer.
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
        for connection in self._idle:
            connection.close()

    def _config(self) -> dict[str, Any]:
        return self._get(f"{self._path}/config")

    def _get(self, path: str) -> dict[str, Any]:
        _, body = self._request("GET", path)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerRefusalError(f"its answer to GET {path} is not JSON") from error

    def _request(
        self,
        method: str,
        path: str,
        parts: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
    ) -> tuple[http.client.HTTPResponse, bytearray]:
        """Returns the head and the body of a good answer."""
        if self._is_closed:
            raise ServerRefusalError("the connection was closed")
        length = {"Content-Length": str(sum(map(len, parts)))} if parts else {}
        connection = self._take()
        is_used = connection.sock is not None
        try:
            answer, body = self._exchange(
                connection, method, path, parts or None, {**self._headers, **length, **(headers or {})}
            )
        except BaseException as error:
            self._drop(connection)
            if is_used and isinstance(error, ConnectionError):
                # Servers close connections that were idle for long.
                return self._request(method, path, parts, headers)
            if isinstance(error, ssl.SSLCertVerificationError):
                raise ServerRefusalError(f"the encrypted connection fails: {error.verify_message}") from error
            if isinstance(error, (OSError, http.client.HTTPException)):
                raise ServerAwayError(_words(error, self._timeout_s)) from error
            raise
        if answer.will_close:
            self._drop(connection)
        else:
            self._idle.append(connection)
        _check_status(answer, body)
        return answer, body

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        parts: Sequence[bytes | memoryview] | None,
        headers: dict[str, str],
    ) -> tuple[http.client.HTTPResponse, bytearray]:
        end_s = time.monotonic() + self._timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout_s)
        connection.request(method, path, parts, headers)
        answer = connection.getresponse()
        return answer, _read_body(answer, connection.sock, end_s)

    def _take(self) -> http.client.HTTPConnection:
        """Returns an idle connection, or a new one."""
        with suppress(IndexError):
            return self._idle.pop()
        host, port, timeout_s = self._address.host, self._address.port, self._timeout_s
        connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._context)
            if self._context is not None
            else http.client.HTTPConnection(host, port, timeout=timeout_s)
        )
        self._open.add(connection)
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        self._open.discard(connection)
        connection.close()


def _tls(config: ServerConfig) -> ssl.SSLContext:
    context = tls_context(config.ca_file, error=EngineLoadError)
    if config.cert_file:
        try:
            context.load_cert_chain(config.cert_file, config.key_file)
        except OSError as error:
            raise EngineLoadError(f"{config.cert_file}, {config.key_file}: cannot be read: {error}") from error
    return context


def _read_body(answer: http.client.HTTPResponse, sock: socket.socket | None, end_s: float) -> bytearray:
    """Reads an answer to its end, within the time of the whole request."""
    body = bytearray()
    while True:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if sock is not None:
            sock.settimeout(left_s)
        data = answer.read1(1 << 20)
        if not data:
            break
        body += data
        if len(body) > _MAX_ANSWER_BYTES:
            raise http.client.HTTPException(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    if answer.length:
        raise http.client.IncompleteRead(b"")
    # `read1` does not note the end, without which the connection cannot be used again.
    answer.close()
    return body


def _check_status(answer: http.client.HTTPResponse, body: bytearray) -> None:
    """Raises the error that an answer reports, if it reports one."""
    if answer.status == 200:
        return
    message = f"it answers {answer.status} {answer.reason}: {_said(body)}".rstrip(": ")
    if answer.status in _AWAY:
        raise ServerAwayError(message)
    raise ServerRefusalError(message, is_login=answer.status in _LOGIN)


def _said(body: bytearray) -> str:
    """Returns the error text of an answer."""
    try:
        said = json.loads(body)["error"]
    except _MALFORMED:
        said = body[:_SHOWN_BYTES].decode("utf-8", "replace")
    return redact(" ".join(str(said)[:_SHOWN_BYTES].split()))


def _manifest_in(config: dict[str, Any]) -> str | None:
    text = config.get("parameters", {}).get(METADATA_KEY, {}).get("string_value")
    if not isinstance(text, (str, type(None))):
        raise TypeError(f"{METADATA_KEY}: expected a text")
    return text


def _read_outputs(body: bytearray, header_bytes: int) -> dict[str, npt.NDArray[Any]]:
    head = json.loads(body[:header_bytes])
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in head["outputs"]:
        dtype = _NUMPY_TYPES[tensor["datatype"]]
        num_bytes = tensor["parameters"]["binary_data_size"]
        # A copy, because the bytes are not aligned.
        flat = np.frombuffer(body, dtype, num_bytes // dtype.itemsize, header_bytes).copy()
        arrays[tensor["name"]] = flat.reshape(tensor["shape"])
        header_bytes += num_bytes
    return arrays


def _words(error: Exception, timeout_s: float) -> str:
    """Describes why a server was not reached; an answer that is no HTTP may hold anything, so it is not shown."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"its answer is broken ({type(error).__name__})"
