"""The bundle and the runtime on the real server of NVIDIA Triton."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgerpn.export.packages.package import package
from edgerpn.runtime import Result, ServerConfig, load
from tests.support.models import MakeModel
from tests.support.real_triton import VARIABLE, RealTriton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ,
        reason=f"{VARIABLE} does not name the Python of an environment with nvidia-pytriton and onnxruntime",
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def packed(make_packed: MakeModel) -> Path:
    return make_packed(batch=None)


@pytest.fixture
def bundle(packed: Path, tmp_path: Path) -> Path:
    return package(packed, "triton", tmp_path / "bundle")


@pytest.fixture
def triton(bundle: Path, tmp_path: Path) -> Iterator[RealTriton]:
    (tmp_path / "triton").mkdir()
    server = RealTriton(bundle, tmp_path / "triton")
    yield server
    server.kill()


@pytest.mark.parametrize("transport", ["http", "triton+grpc"])
def test_triton_gives_the_proposals_of_the_local_model_though_it_is_killed_meanwhile(
    triton: RealTriton, packed: Path, video_path: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    if transport == "triton+grpc":
        pytest.importorskip("tritonclient.grpc")
    port = triton.http_port if transport == "http" else triton.grpc_port
    with load(packed) as local:
        expected = [result.proposals for result in local.stream(video_path)]
    found: list[Result] = []
    config = ServerConfig(timeout_s=60, outage_s=120)
    with load(f"{transport}://127.0.0.1:{port}/bright", server=config) as served:
        assert served.backend.name.startswith("triton 2.")
        for result in served.stream(video_path):
            found.append(result)
            if len(found) == 10:
                triton.kill()
                restarting = threading.Timer(1.0, triton.start)
                restarting.start()
    restarting.join()
    assert "trying again for 120 s" in caplog.text
    assert [result.index for result in found] == list(range(40))
    for result, proposals in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result.proposals.boxes, proposals.boxes)


def test_tritons_answers_pass_the_smoke_test_of_the_client(triton: RealTriton, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    command = [sys.executable, str(bundle / "client.py"), "--url", f"127.0.0.1:{triton.grpc_port}", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "the golden frames gave the expected proposals\n"), done.stderr
