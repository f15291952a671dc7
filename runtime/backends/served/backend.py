"""The backend of a model that a server runs; Triton, or any server with its model configuration.

The server's configuration of the model carries the text of the manifest. Requests are repeated while the server is
away, within limits; a frame that grows too old meanwhile becomes an event `stale`, because its age is judged when its
result is emitted.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time

import numpy as np
import numpy.typing as npt

from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, InferenceError, ManifestError
from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.manifest import METADATA_KEY, Manifest
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import (
    check_frames,
    check_outputs,
    output_shapes,
    refuse_layout,
    run_in_parts,
    tensors_of,
)
from edgerpn.runtime.backends.served.client import (
    DTYPES,
    ServedAddress,
    ServedModel,
    ServerAwayError,
    ServerClient,
    ServerRefusalError,
)
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.tracing import span

_CHECK_S = 1.0
_logger = logging.getLogger(__name__)


class ServedBackend:
    """Runs a model on its server; see `edgerpn.runtime.backends.contract.Backend` for the contract."""

    def __init__(self, url: str, config: ServerConfig) -> None:
        """Asks the server for the model, once, and checks its shapes.

        Raises:
            EngineLoadError: The address is wrong, or the server is away or refuses.
            ManifestError: The server's configuration has no manifest, or not one of this version.
            ArtifactMismatchError: Inputs and outputs on the server are not those of the manifest.
            MissingDependencyError: The address needs tritonclient, which is not installed.
        """
        self._address = ServedAddress.parse(url)
        self._config = config
        self._client = _open_client(self._address, config)
        self._closed = threading.Event()
        where = self._address.shown
        try:
            found = self._client.describe()
            self._manifest = _read_manifest(where, found)
            _check_interface(where, found, self._manifest)
        except (ServerAwayError, ServerRefusalError) as error:
            self._client.close()
            raise EngineLoadError(f"{where}: the server cannot run the model: {error}") from error
        except BaseException:
            self._client.close()
            raise
        self._found = found
        self._checked_s = time.monotonic()
        self._shapes = output_shapes(self._manifest)
        self._roles = {spec.name: role for role, spec in self._manifest.outputs_by_role.items()}
        bind_to_process(self, "_client")

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def name(self) -> str:
        """Server, its version and address."""
        return f"{self._found.server} ({self._address.shown})"

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def frames_in_flight(self) -> int:
        """The setting `num_in_flight`: while one request travels, the server works on another."""
        return self._config.num_in_flight

    @property
    def max_batch(self) -> int | None:
        return self._found.max_batch or None

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph, see `Backend.infer`; blocks for `outage_s` and two requests at most."""
        if self._closed.is_set() or is_foreign(self):
            raise RuntimeError("the model is closed, or was opened before a fork")
        frames = check_frames(frames, self._manifest)
        return run_in_parts(self._run, frames, fixed=self._manifest.input.batch, most=self.max_batch)

    def close(self) -> None:
        """Closes the connections; threads inside of `infer` fail."""
        if not is_foreign(self):
            self._closed.set()
            self._client.close()

    def _run(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Repeats a request until the server answers or `outage_s` is over."""
        start_s, delay_s = time.monotonic(), self._config.backoff_first_s
        outcome = self._attempt(frames)
        if isinstance(outcome, Outputs):
            return outcome
        if self._config.outage_s:
            _logger.warning("%s: %s; trying again for %g s", self._address.shown, outcome, self._config.outage_s)
        while not isinstance(outcome, Outputs):
            self._wait(outcome, start_s, delay_s)
            delay_s = min(2 * delay_s, self._config.backoff_max_s)
            outcome = self._attempt(frames)
        _logger.info("%s answers again after %.1f s", self._address.shown, time.monotonic() - start_s)
        return outcome

    def _attempt(self, frames: npt.NDArray[np.uint8]) -> Outputs | Exception:
        """Returns the outputs, or an error that may pass.

        Raises:
            InferenceError: Another request would not be answered either.
        """
        outcome = self._outcome(frames)
        if isinstance(outcome, Outputs) or self._may_pass(outcome):
            return outcome
        if not self._is_final(outcome):
            # A server that finished loading the model just after its refusal says that it is ready.
            again = self._outcome(frames)
            if isinstance(again, Outputs) or self._may_pass(again):
                return again
        raise InferenceError(f"{self._address.shown}: the server refuses the frames: {outcome}") from outcome

    def _outcome(self, frames: npt.NDArray[np.uint8]) -> Outputs | ServerAwayError | ServerRefusalError:
        try:
            self._check_same()
            return self._ask(frames)
        except (ServerAwayError, ServerRefusalError) as error:
            self._checked_s = -math.inf
            return error

    def _is_final(self, error: ServerAwayError | ServerRefusalError) -> bool:
        return (isinstance(error, ServerRefusalError) and error.is_login) or self._closed.is_set()

    def _may_pass(self, error: ServerAwayError | ServerRefusalError) -> bool:
        """Returns whether a repetition may succeed: a server that loads the model refuses, too."""
        if isinstance(error, ServerAwayError):
            return True
        if self._is_final(error):
            return False
        try:
            return not self._client.is_ready()
        except ServerAwayError:
            return True
        except ServerRefusalError:
            return False

    def _ask(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        with span("inference"):
            arrays = self._client.infer(self._manifest.input.name, frames, list(self._roles))
        try:
            shaped = {
                role: arrays[name].reshape(len(frames), *self._shapes[role]) for name, role in self._roles.items()
            }
        except (KeyError, ValueError) as error:
            raise InferenceError(f"{self._address.shown}: the answer lacks an output or its shape: {error}") from error
        outputs = Outputs(**shaped)
        check_outputs(outputs, len(frames), self._shapes, num_classes=len(self._manifest.class_names))
        return outputs

    def _check_same(self) -> None:
        """Makes sure, once a second, that the server still runs the model of the start.

        No server restarts within that time, and one that loads another model is found out.

        Raises:
            InferenceError: It runs another one.
        """
        now_s = time.monotonic()
        if now_s < self._checked_s + _CHECK_S:
            return
        if self._client.manifest_text() != self._found.manifest:
            raise InferenceError(
                f"{self._address.shown}: the server now runs another model than at the start; start the run again"
            )
        self._checked_s = now_s

    def _wait(self, error: Exception, start_s: float, delay_s: float) -> None:
        """Waits before a repetition.

        Raises:
            InferenceError: The backend is closed, or the time is over.
        """
        left_s = start_s + self._config.outage_s - time.monotonic()
        if left_s <= 0 or self._closed.wait(min(left_s, delay_s * random.uniform(0.5, 1.0))):
            raise InferenceError(
                f"{self._address.shown}: {error}; tried for {time.monotonic() - start_s:.1f} s. Start the server, or "
                "raise server.outage_s, or server.timeout_s if it is slow."
            ) from error


def _open_client(address: ServedAddress, config: ServerConfig) -> ServerClient:
    # Imported late: only one of them is needed, and gRPC takes a package.
    if address.is_grpc:
        from edgerpn.runtime.backends.served.grpc_client import GrpcServerClient

        return GrpcServerClient(address, config)
    from edgerpn.runtime.backends.served.http_client import HttpServerClient

    return HttpServerClient(address, config)


def _read_manifest(where: str, found: ServedModel) -> Manifest:
    if found.manifest is None:
        raise ManifestError(
            f"{where}: the model's configuration on the server has no parameter {METADATA_KEY!r} with "
            "the text of the manifest: serve the folder that edgerpn package MODEL --for triton writes"
        )
    manifest = manifests.parse(found.manifest, source=f"{where} (parameter {METADATA_KEY})")
    refuse_layout(where, manifest)
    return manifest


def _check_interface(where: str, found: ServedModel, manifest: Manifest) -> None:
    """Checks that the inputs and outputs on the server are those of the manifest, whatever their batch."""
    for name, (dtype, shape) in tensors_of(manifest).items():
        sent, sizes = found.tensors.get(name, ("", ()))
        # Triton has no tensors without a size behind the batch, so count has a last one of 1.
        if sent != DTYPES[dtype] or sizes[1:] not in (shape[1:], shape[1:] or (1,)):
            raise ArtifactMismatchError(
                f"{where}: the manifest says that the model has {name!r} as {DTYPES[dtype]} {['N', *shape[1:]]}, but "
                f"the server has {f'{sent} {list(sizes)}' if sent else sorted(found.tensors)}. Package the model again."
            )
