"""A server of models that speaks KServe's protocol, version 2, around ONNX Runtime, as Triton does.

It has Triton's model configuration and binary tensors, and refuses what Triton refuses, with its words: models, names,
types, sizes and batches that are not those of the configuration. By HTTP, and by gRPC where tritonclient is installed.
"""

from __future__ import annotations

import base64
import json
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgerpn import manifest as manifests
from edgerpn.manifest import METADATA_KEY, Manifest

_TYPES = {"UINT8": np.uint8, "FP32": np.float32, "INT32": np.int32}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|config|infer))?")
Tensors = dict[str, npt.NDArray[Any]]


class RefusedError(Exception):
    """An answer that is an error, with its status in HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def configuration(manifest: Manifest, manifest_text: str, *, name: str, max_batch: int) -> dict[str, Any]:
    """Returns the configuration of a model, as Triton gives it in JSON; `max_batch` 0: the graph's own batch."""
    first = 1 if max_batch else 0
    batch = manifest.input.batch or -1
    outputs: list[dict[str, Any]] = []
    for spec in manifest.outputs_by_role.values():
        dims = [batch if size == "N" else int(size) for size in spec.shape][first:]
        kind = "TYPE_FP32" if spec.dtype == "float32" else "TYPE_INT32"
        outputs.append({"name": spec.name, "data_type": kind, "dims": dims or [1]})
        if not dims:
            outputs[-1]["reshape"] = {"shape": []}
    dims = [batch, *manifest.input.frame_shape][first:]
    return {
        "name": name,
        "max_batch_size": max_batch,
        "input": [{"name": manifest.input.name, "data_type": "TYPE_UINT8", "dims": dims}],
        "output": outputs,
        "parameters": {METADATA_KEY: {"string_value": manifest_text}},
    }


class Graph:
    """An ONNX file under a configuration."""

    def __init__(self, file: Path, config: Mapping[str, Any], *, version: str = "1") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.config = config
        self.version = version
        self.batches: list[int] = []
        """Frames of each request so far."""
        self.delay_s = 0.0
        self.is_ready = True
        self.failure: Callable[[], None] = lambda: None
        """Called before each inference; may raise."""
        self._session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])

    def metadata(self) -> dict[str, Any]:
        batch = [-1] if int(self.config.get("max_batch_size", 0)) else []

        def described(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                {
                    "name": item["name"],
                    "datatype": item["data_type"].removeprefix("TYPE_"),
                    "shape": [*batch, *map(int, item["dims"])],
                }
                for item in items
            ]

        return {
            "name": self.config["name"],
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": described(self.config["input"]),
            "outputs": described(self.config["output"]),
        }

    def run(self, inputs: list[tuple[str, str, list[int], bytes]], outputs: list[str]) -> Tensors:
        """Runs inputs of name, type, shape and bytes as Triton would, checks included."""
        name, metadata = self.config["name"], self.metadata()
        known = {item["name"]: item for item in metadata["inputs"]}
        given: Tensors = {}
        for tensor, datatype, shape, data in inputs:
            if tensor not in known:
                raise RefusedError(400, f"unexpected inference input '{tensor}' for model '{name}'")
            _check_tensor(name, known[tensor], datatype, shape, data, int(self.config.get("max_batch_size", 0)))
            given[tensor] = np.frombuffer(data, _TYPES[datatype]).reshape(shape)
        if missing := known.keys() - given.keys():
            raise RefusedError(400, f"expected {len(known)} inputs but got {len(given)} for '{name}': {missing}")
        sizes = {item["name"]: item["shape"] for item in metadata["outputs"]}
        outputs = outputs or list(sizes)
        for output in outputs:
            if output not in sizes:
                raise RefusedError(400, f"unexpected inference output '{output}' for model '{name}'")
        self.failure()
        time.sleep(self.delay_s)
        self.batches.append(len(next(iter(given.values()))))
        arrays = zip(outputs, self._session.run(outputs, given), strict=True)
        # An output without a size behind the batch gets one.
        return {name: array.reshape(*array.shape, *[1] * (len(sizes[name]) - array.ndim)) for name, array in arrays}


def _check_tensor(
    model: str, expected: dict[str, Any], datatype: str, shape: list[int], data: bytes, max_batch: int
) -> None:
    name, kind, sizes = expected["name"], expected["datatype"], expected["shape"]
    what = f"for input '{name}' for model '{model}'"
    if datatype != kind:
        raise RefusedError(400, f"input '{name}' data-type is '{datatype}', but model '{model}' expects '{kind}'")
    if max_batch and shape and shape[0] > max_batch:
        raise RefusedError(400, f"inference request batch-size must be <= {max_batch} for '{model}'")
    fits = len(shape) == len(sizes) and all(want in (-1, have) for want, have in zip(sizes, shape, strict=True))
    if not fits:
        raise RefusedError(400, f"unexpected shape {what}. Expected {sizes}, got {shape}")
    num_bytes = math.prod(shape) * np.dtype(_TYPES[datatype]).itemsize
    if len(data) != num_bytes:
        raise RefusedError(400, f"input byte size mismatch {what}. Expected {num_bytes}, got {len(data)}")


class ModelServer:
    """Serves graphs by name on 127.0.0.1; it can be killed and started again at the same address."""

    def __init__(
        self, graphs: Mapping[str, Graph], *, is_grpc: bool = False, tls: tuple[Path, Path] | None = None
    ) -> None:
        """Starts.

        Args:
            graphs: May change while it serves.
            is_grpc: Whether it speaks gRPC instead of HTTP.
            tls: Files of its certificate and key, for `localhost`.
        """
        self.graphs = dict(graphs)
        self.authorization = ""
        """Header that every request must have; empty: none."""
        self.spoil: Callable[[bytes], bytes] = bytes
        """Changes the body of each answer by HTTP."""
        self._is_grpc = is_grpc
        self._tls = tls
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Address of the server, to which the name of a model belongs."""
        scheme = "triton+grpc" if self._is_grpc else "http"
        return f"{scheme}s://localhost:{self._port}" if self._tls else f"{scheme}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts, again at the same address."""
        self._server: Any = _GrpcServer(self, self._port) if self._is_grpc else _HttpServer(self, self._port, self._tls)
        self._port = self._server.port

    def kill(self) -> None:
        """Ends all connections, as the end of the process does."""
        self._server.kill()

    def find(self, name: str, version: str, authorization: str) -> Graph:
        """Returns a graph that is loaded."""
        if self.authorization and authorization != self.authorization:
            raise RefusedError(401, "wrong or missing credentials")
        if name not in self.graphs:
            raise RefusedError(404, f"Request for unknown model: '{name}' is not found")
        graph = self.graphs[name]
        if version not in ("", graph.version):
            raise RefusedError(404, f"Request for unknown model: '{name}' version {version} is not found")
        if not graph.is_ready:
            raise RefusedError(400, f"Request for unknown model: '{name}' has no available versions")
        return graph


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: ModelServer, port: int, tls: tuple[Path, Path] | None) -> None:
        self._connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), _handler(owner))
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.port = self.server_port
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing about clients that leave."""

    def kill(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _handler(owner: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            try:
                status, headers, answer = 200, *self._find(body)
            except RefusedError as error:
                status, headers, answer = error.status, {}, json.dumps({"error": str(error)}).encode()
            answer = owner.spoil(answer)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _find(self, body: bytes) -> tuple[dict[str, str], bytes]:
            authorization = self.headers.get("Authorization", "")
            if self.path == "/v2":
                return {}, json.dumps({"name": "triton", "version": "2.0-test"}).encode()
            found = _PATH.fullmatch(self.path)
            if found is None:
                raise RefusedError(404, "Not Found")
            graph = owner.find(found["model"], found["version"] or "", authorization)
            if found["verb"] == "config":
                return {}, json.dumps(graph.config).encode()
            if found["verb"] is None:
                return {}, json.dumps(graph.metadata()).encode()
            if found["verb"] == "ready":
                return {}, b""
            return _infer_http(graph, body, int(self.headers["Inference-Header-Content-Length"]))

        def log_message(self, *arguments: object) -> None:
            """Logs nothing."""

    return Handler


def _infer_http(graph: Graph, body: bytes, header_bytes: int) -> tuple[dict[str, str], bytes]:
    asked = json.loads(body[:header_bytes])
    inputs = []
    for tensor in asked["inputs"]:
        end = header_bytes + tensor["parameters"]["binary_data_size"]
        inputs.append((tensor["name"], tensor["datatype"], tensor["shape"], body[header_bytes:end]))
        header_bytes = end
    arrays = graph.run(inputs, [output["name"] for output in asked["outputs"]])
    head = {
        "model_name": graph.config["name"],
        "model_version": graph.version,
        "outputs": [
            {
                "name": name,
                "datatype": _NAMES[array.dtype],
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in arrays.items()
        ],
    }
    text = json.dumps(head).encode()
    answer = text + b"".join(array.tobytes() for array in arrays.values())
    return {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}, answer


class _GrpcServer:
    def __init__(self, owner: ModelServer, port: int) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_service(owner), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def kill(self) -> None:
        self._server.stop(0).wait()


def _service(owner: ModelServer) -> Any:
    import grpc
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    codes = {
        400: grpc.StatusCode.INVALID_ARGUMENT,
        401: grpc.StatusCode.UNAUTHENTICATED,
        404: grpc.StatusCode.NOT_FOUND,
        500: grpc.StatusCode.INTERNAL,
        503: grpc.StatusCode.UNAVAILABLE,
    }

    def answering(answer: Callable[[Any, str], Any]) -> Callable[..., Any]:
        def method(_: object, request: Any, context: Any) -> Any:
            try:
                return answer(request, dict(context.invocation_metadata()).get("authorization", ""))
            except RefusedError as error:
                context.abort(codes[error.status], str(error))

        return method

    def metadata(request: Any, key: str) -> Any:
        found = owner.find(request.name, request.version, key).metadata()
        return ParseDict(found, service_pb2.ModelMetadataResponse())

    def config(request: Any, key: str) -> Any:
        found = owner.find(request.name, request.version, key).config
        return ParseDict({"config": found}, service_pb2.ModelConfigResponse())

    def is_ready(request: Any, key: str) -> Any:
        try:
            owner.find(request.name, request.version, key)
        except RefusedError as error:
            if error.status == 401:
                raise
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    def infer(request: Any, key: str) -> Any:
        graph = owner.find(request.model_name, request.model_version, key)
        tensors = zip(request.inputs, request.raw_input_contents, strict=True)
        inputs = [(tensor.name, tensor.datatype, list(tensor.shape), data) for tensor, data in tensors]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=graph.version)
        for name, array in graph.run(inputs, [output.name for output in request.outputs]).items():
            response.outputs.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        ServerMetadata = answering(lambda *_: service_pb2.ServerMetadataResponse(name="triton", version="2.0-test"))
        ModelMetadata = answering(metadata)
        ModelConfig = answering(config)
        ModelReady = answering(is_ready)
        ModelInfer = answering(infer)

    return Service()


def serve_file(file: Path, *, name: str = "bright", max_batch: int = 8) -> Graph:
    """Returns the graph of an ONNX file with its manifest; of a fixed batch if it has one."""
    manifest = manifests.read(file)
    text = manifests.manifest_path(file).read_text(encoding="utf-8")
    most = 0 if manifest.input.batch is not None else max_batch
    return Graph(file, configuration(manifest, text, name=name, max_batch=most))


def basic(user: str, password: str) -> str:
    """Returns the header of basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
