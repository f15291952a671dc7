"""The part of KServe's protocol, version 2, that a run needs; `http_client` and `grpc_client` speak it.

Source: the Open Inference Protocol, and Triton's extensions for binary tensors and model configuration.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.endpoint import check_url, read_secret
from edgerpn.runtime.redaction import redact_url

DTYPES: Mapping[str, str] = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32"}
"""NumPy's names of element types, and the protocol's."""

_PREFIX = "triton+"
_SCHEMES = ("http", "https", "triton+http", "triton+https", "triton+grpc", "triton+grpcs")


class ServerAwayError(Exception):
    """The server cannot be reached, does not answer in time, or has not loaded the model: it may later."""


class ServerRefusalError(Exception):
    """The server refuses a request, as it will the next time; `is_login`: because of user, password or token."""

    def __init__(self, message: str, *, is_login: bool = False) -> None:
        """Keeps the reason beside the message."""
        self.is_login = is_login
        super().__init__(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedAddress:
    """The address of a model: SCHEME://[USER:PASSWORD@]HOST:PORT/MODEL[/VERSION]."""

    is_grpc: bool
    """Whether the server speaks gRPC there, and not HTTP."""
    is_tls: bool
    """Whether the connection is encrypted."""
    host: str
    """Name or address, without brackets."""
    port: int
    """Port."""
    model: str
    """Name of the model."""
    version: str
    """Its version; empty: the server chooses."""
    login: str = field(repr=False)
    """USER:PASSWORD; empty: none."""
    shown: str
    """The address for people, without credentials."""

    @classmethod
    def parse(cls, url: str) -> ServedAddress:
        """Reads an address.

        Raises:
            EngineLoadError: It has another form; the message shows no password.
        """
        shown = redact_url(url)
        form = f"{'://, '.join(_SCHEMES)}:// and HOST:PORT/MODEL or HOST:PORT/MODEL/VERSION"
        try:
            parts = check_url("MODEL", url, _SCHEMES)
        except ValueError as error:
            raise EngineLoadError(str(error)) from None
        model, _, version = parts.path.strip("/").partition("/")
        if not model or parts.port is None or parts.query or not (version.isdecimal() or not version):
            raise EngineLoadError(f"MODEL: expected {form}, got {shown!r}")
        transport = parts.scheme.removeprefix(_PREFIX)
        return cls(
            is_grpc=transport.startswith("grpc"),
            is_tls=transport.endswith("s"),
            host=parts.hostname or "",
            port=parts.port,
            model=unquote(model),
            version=version,
            login=f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username is not None else "",
            shown=shown,
        )


def authorization(address: ServedAddress, config: ServerConfig) -> dict[str, str]:
    """Returns the header with the credentials; empty: there are none.

    Raises:
        EngineLoadError: The token cannot be read, or there is a password beside it.
    """
    token = read_secret(
        env=config.token_env, file=config.token_file, purpose="token of the model's server", error=EngineLoadError
    )
    if token is not None and address.login:
        raise EngineLoadError(f"{address.shown}: the settings have a token too; leave out user and password")
    if address.login:
        token = "Basic " + base64.b64encode(address.login.encode()).decode("ascii")
    if token is not None and not token.isascii():
        raise EngineLoadError("token of the model's server: expected ASCII characters")
    return {} if token is None else {"authorization": token}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model as its server describes it."""

    server: str
    """Name and version of the server."""
    manifest: str | None
    """Value of the parameter `edgerpn.manifest` in the model's configuration; None: it has no such parameter."""
    max_batch: int
    """Frames in a request at most; 0: as many as the graph's fixed batch."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Element type, as the protocol writes it, and shape of each input and output by name; -1: any size."""


class ServerClient(Protocol):
    """Talks to a server about one model; threads share it.

    Each call takes `ServerConfig.timeout_s` at most and raises `ServerAwayError` or `ServerRefusalError`.
    """

    def describe(self) -> ServedModel:
        """Asks for the model's metadata and configuration."""
        ...

    def manifest_text(self) -> str | None:
        """Asks for the manifest alone, see `ServedModel`."""
        ...

    def is_ready(self) -> bool:
        """Asks whether the server has loaded the model."""
        ...

    def infer(self, name: str, frames: npt.NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Runs the model.

        Args:
            name: Name of the input.
            frames: C-contiguous; only read.
            outputs: Names of the outputs.

        Returns:
            The outputs by name, owned by the caller.
        """
        ...

    def close(self) -> None:
        """Closes all connections, in use or not; calls in other threads fail."""
        ...
