"""The real server of NVIDIA Triton, from the package nvidia-pytriton, in an environment of its own.

The package carries the server with its Python backend only, so a model of a few lines runs the graph of a bundle by
ONNX Runtime; the rest of the bundle stays as it is. `EDGERPN_PYTRITON` names the Python of an environment with
nvidia-pytriton and onnxruntime; the backend needs the shared library of that Python's version (libpython3.11).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

from tests.support import patience

VARIABLE = "EDGERPN_PYTRITON"

_MODEL = """
import os, sys
sys.path.insert(0, {site!r})
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, arguments):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = os.path.join(arguments["model_repository"], arguments["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        frames = triton.get_input_tensor_by_name(request, self.input).as_numpy()
        arrays = self.session.run(self.outputs, {{self.input: frames}})
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(self.outputs, arrays)])
"""


class RealTriton:
    """Serves a bundle; it can be killed and started again at the same ports."""

    def __init__(self, bundle: Path, work: Path) -> None:
        """Copies the bundle into `work`, an empty folder, and starts."""
        lines = "import sys, sysconfig; print(sysconfig.get_path('purelib')); print('%d.%d' % sys.version_info[:2])"
        python = os.environ[VARIABLE]
        found = subprocess.run([python, "-c", lines], check=True, capture_output=True, text=True).stdout.split()
        self._site, version = Path(found[0]), found[1]
        server = self._site / "pytriton" / "tritonserver"
        self._backends, self._repository = work / "backends", work / "repository"
        shutil.copytree(server / "backends", self._backends)
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, self._backends / "python")
        shutil.copytree(bundle, self._repository)
        (config,) = self._repository.glob("*/config.pbtxt")
        text, changes = re.subn(r'^platform: "onnxruntime_onnx"$', 'backend: "python"', config.read_text(), flags=re.M)
        assert changes == 1
        config.write_text(text)
        (config.parent / "1" / "model.py").write_text(_MODEL.format(site=str(self._site)))
        self._program = server / "bin" / "tritonserver"
        self._log = work / "server.log"
        self.http_port, self.grpc_port = _free_port(), _free_port()
        self.start()

    def start(self) -> None:
        """Starts, and waits until the model is ready."""
        command = [
            str(self._program), "--model-repository", str(self._repository), "--backend-directory", str(self._backends),
            "--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port), "--allow-metrics", "false",
            "--disable-auto-complete-config",
        ]  # fmt: skip
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self._site / "nvidia_pytriton.libs")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        patience.wait_until(self._is_ready)

    def kill(self) -> None:
        """Ends the server at once; its Python process ends with it."""
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-4000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=1):
                return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
