"""KServe's protocol by gRPC, with NVIDIA's package tritonclient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError, require
from edgerpn.manifest import METADATA_KEY
from edgerpn.runtime.backends.served.client import (
    ServedAddress,
    ServedModel,
    ServerAwayError,
    ServerRefusalError,
    authorization,
)
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.redaction import redact

_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
_LOGIN = ("UNAUTHENTICATED", "PERMISSION_DENIED")


class GrpcServerClient:
    """Has one channel for all threads; see `ServerClient`."""

    def __init__(self, address: ServedAddress, config: ServerConfig) -> None:
        """Reads secrets and certificates; the first call connects.

        Raises:
            EngineLoadError: A secret or a certificate cannot be read.
            MissingDependencyError: tritonclient is not installed.
        """
        self._library = require("tritonclient.grpc", extra="triton", purpose="a model behind triton+grpc://")
        self._model = {"model_name": address.model, "model_version": address.version}
        self._timeout_s = config.timeout_s
        self._headers = authorization(address, config)
        files = {"root_certificates": config.ca_file, "private_key": config.key_file}
        files = {name: file for name, file in {**files, "certificate_chain": config.cert_file}.items() if file}
        for file in files.values() if address.is_tls else ():
            if not Path(file).is_file():
                raise EngineLoadError(f"{file}: no such file, expected certificates or a key")
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._client = self._library.InferenceServerClient(
            f"{host}:{address.port}", ssl=address.is_tls, **files, channel_args=_channel_arguments(config)
        )

    def describe(self) -> ServedModel:
        server = self._call(self._client.get_server_metadata)
        metadata = self._call(self._client.get_model_metadata, **self._model)
        config = self._config()
        return ServedModel(
            server=f"{server.name} {server.version}",
            manifest=_manifest_in(config),
            max_batch=config.max_batch_size,
            tensors={item.name: (item.datatype, tuple(item.shape)) for item in (*metadata.inputs, *metadata.outputs)},
        )

    def manifest_text(self) -> str | None:
        return _manifest_in(self._config())

    def is_ready(self) -> bool:
        return bool(self._call(self._client.is_model_ready, **self._model))

    def infer(self, name: str, frames: npt.NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        tensor = self._library.InferInput(name, frames.shape, "UINT8").set_data_from_numpy(frames)
        asked = [self._library.InferRequestedOutput(output) for output in outputs]
        result = self._call(self._client.infer, **self._model, inputs=[tensor], outputs=asked)
        # Copies, because the arrays of the library are read-only.
        return {item.name: result.as_numpy(item.name).copy() for item in result.get_response().outputs}

    def close(self) -> None:
        self._client.close()

    def _config(self) -> Any:
        return self._call(self._client.get_model_config, **self._model).config

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return method(**arguments, headers=self._headers, client_timeout=self._timeout_s)
        except self._library.InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            said = redact(" ".join(str(error.message()).split()))
            if status == "DEADLINE_EXCEEDED":
                said = f"no answer within {self._timeout_s:g} s"
            if status in _AWAY:
                raise ServerAwayError(said) from error
            raise ServerRefusalError(f"it answers {status}: {said}", is_login=status in _LOGIN) from error
        except ValueError as error:
            # The channel was closed by another thread.
            raise ServerRefusalError("the connection was closed") from error


def _manifest_in(config: Any) -> str | None:
    # To look a missing key up would add it.
    return config.parameters[METADATA_KEY].string_value if METADATA_KEY in config.parameters else None


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """Returns gRPC's settings: messages of any length, and reconnects as often as requests are repeated."""
    first_ms, longest_ms = round(config.backoff_first_s * 1e3), round(config.backoff_max_s * 1e3)
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", first_ms),
        ("grpc.min_reconnect_backoff_ms", first_ms),
        ("grpc.max_reconnect_backoff_ms", longest_ms),
        # As for HTTP, the environment's proxies are not asked: the server is near.
        ("grpc.enable_http_proxy", 0),
    ]
