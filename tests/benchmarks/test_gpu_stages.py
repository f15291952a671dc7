"""The stages of the GPU check, rehearsed on the stand-in: the same functions in this process, and as real processes."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import bundle as gpu_bundle
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import child, detector, driver, engine, places, ring, rtx, shim
from benchmarks.gpu import session as gpu_session
from edgerpn import golden, manifest
from edgerpn.errors import SelfTestError
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.train.network.anchors import AnchorConfig
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import ModelConfig, Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig

pytestmark = pytest.mark.timeout(240)

MakeModel = Callable[..., Path]
RTX = {"library": "tensorrt-rtx", "library_version": "1.7.1.116"}
HW = (96, 160)


def tiny_detector() -> Detector:
    """A network of few channels with random weights, as exports fold it."""
    torch.manual_seed(0)
    anchors = AnchorConfig(strides_px=(8, 16, 32), sizes_px=((32.0,), (64.0,), (128.0,)))
    config = ModelConfig(
        anchors=anchors, stage_channels=(8, 8, 16, 16, 16), stage_blocks=(0,) * 5, neck_channels=16, head_channels=16
    )
    model = Rpn(config).eval()
    torch.nn.init.normal_(model.head.objectness.weight, std=0.4)
    fuse_batch_norm(model)
    model.fold_std()
    proposals = ProposalConfig(num_proposals=10, pre_nms=50, nms_candidates=60, nms_iterations=8)
    return Detector(model, proposals, network_hw=HW, nms="portable").eval()


@pytest.fixture(scope="session")
def models(make_model: MakeModel, make_engine: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the archive of a bundle holds, of a model that the stand-in runs and a tiny detector."""
    folder = tmp_path_factory.mktemp("models")
    frames = np.random.default_rng(0).integers(0, 256, (4, *HW, 3), dtype=np.uint8)
    engine_path = make_engine(folder, batch=1, **RTX)
    for file in (engine_path, manifest.manifest_path(engine_path)):
        file.rename(folder / file.name.replace("bright", "model"))
    (folder / "source.onnx").unlink()
    onnx = make_model(folder, batch=1)
    backend = OnnxRuntimeBackend(onnx)
    outputs = Outputs.join([backend.infer(frame[None]) for frame in frames])
    kept = golden.write(
        golden.Golden(frames=frames[:2], **outputs.each(lambda array: array[:2]).present), folder / "model.onnx"
    )
    manifest.write(backend.manifest.replace(golden=kept), onnx)
    for file in (onnx, manifest.manifest_path(onnx)):
        file.rename(folder / file.name.replace("bright", "model"))
    gpu_bundle._write_expected(folder / "expected-model.npz", outputs[:3])
    np.savez_compressed(folder / "frames.npz", frames=frames)
    np.savez_compressed(folder / "camera.npz", camera=np.zeros((192, 320, 3), np.uint8))
    gpu_bundle.write_module(folder, tiny_detector())
    with torch.inference_mode():
        batch = detector.load_detector(folder)(torch.from_numpy(frames))
    gpu_bundle._write_expected(folder / "expected-detector.npz", [part.numpy() for part in batch[:3]])
    return folder


@pytest.fixture
def request_of(models: Path, tmp_path: Path) -> dict[str, Any]:
    """What a stage of a rehearsal is asked."""
    return {
        "bundle": str(tmp_path), "work": str(tmp_path), "models": str(models), "rehearse": True, "seconds": 0.0,
        "frames": str(models / "frames.npz"), "onnx": str(models / "model.onnx"), "mode": "eager", "precision": "fp32",
    }  # fmt: skip


def run(function: Callable[..., None], request: dict[str, Any]) -> dict[str, Any]:
    """Runs a stage here; returns what it noted."""
    file = Path(request["work"]) / "told.json"
    notes = gpu_session.Notes(file)
    function(request, notes)
    notes.end("done")
    return dict(json.loads(file.read_text()))


def test_every_stage_has_its_function() -> None:
    for stage in gpu_check.STAGES:
        module = sys.modules[f"benchmarks.gpu.{child.STEPS[stage.step]}"]
        assert callable(getattr(module, stage.step))
    assert len({stage.key for stage in gpu_check.STAGES}) == len(gpu_check.STAGES)


def test_the_runner_passes_every_bit_through_its_memory(request_of: dict[str, Any]) -> None:
    told = run(ring.ring, request_of)
    assert told["status"] == "done", told
    assert told["cuda_graph"] == "works"
    sizes, memories = ("90x150", "384x640"), ("copied", "mapped")
    assert set(told["bits"]) == {f"{size}, {memory}" for size in sizes for memory in memories}
    assert all(text.endswith(" frames, 0 wrong values") for text in told["bits"].values())


def test_one_wrong_bit_fails_the_stage(request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def flawed(frames: Any, rows: int) -> Any:
        frames = frames.copy()
        frames[-1, -1, -1, -1] ^= 1
        return shim.hashes(frames, rows)

    monkeypatch.setattr(places, "hashes", flawed)
    told = run(ring.ring, request_of)
    assert told["status"] == "failed"
    assert "values differ from the reference" in told["reason"]


def test_threads_evicted_plans_and_memory(request_of: dict[str, Any]) -> None:
    told = run(ring.threads, request_of)
    assert told["status"] == "done", told
    assert told["threads"] == "80 batches of four threads on two slots, 0 wrong values"
    assert told["evicted_plans"].endswith(" calls, 0 wrong values")
    assert told["memory"] == {"MiB taken after 5 loads": 0.0}


def test_arrays_are_read_in_place_and_late_ones_awaited(
    request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(ring.arrays, request_of)
    assert told["status"] == "done", told
    assert told["arrays"]["stand-in, CUDA array interface, late on a side stream"] == "equal"
    standin = sys.modules["tests.support.tensorrt_standin"]
    monkeypatch.setattr(standin.HostDevice, "wait_for", lambda *_: None)
    told = run(ring.arrays, request_of)
    assert told["status"] == "failed"
    assert "late on a side stream" in told["reason"]


def test_the_calls_of_the_driver(request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "hardware", lambda request, notes: None)  # has its own test
    monkeypatch.setattr(driver, "_NUM_BYTES", 1 << 16)
    told = run(driver.driver, request_of)
    assert told["status"] == "done", told
    assert (told["copies"]["bytes"], told["mapped"]) == ("equal", "equal")
    assert told["graph"] == "recorded once, replayed twice, equal"
    assert told["device"]["name"] == "Stand-in"
    standin = sys.modules["tests.support.tensorrt_standin"]
    monkeypatch.setattr(standin.HostDevice, "copy_device", lambda *_: None)
    told = run(driver.driver, request_of)
    assert (told["status"], told["graph"]) == ("failed", "recorded once, replayed twice, equal")
    assert "bytes are wrong" in told["copies"]


def test_the_detector_runs_as_the_program_of_the_runner(request_of: dict[str, Any]) -> None:
    told = run(detector.detector, request_of)
    assert told["status"] == "done", told
    assert (told["cuda_graph"], told["proposals"]) == ("works", "40 of 4 frames as on the CPU, twice")
    assert told["latency_ms"]["upload, detector and download as one graph"]["rounds"] >= 20


def test_the_parts_of_the_detector_are_timed_in_both_precisions(request_of: dict[str, Any]) -> None:
    told = run(detector.nms, request_of)
    parts = ("whole", "network", "proposal stage", "NMS")
    assert set(told["latency_ms"]) == {f"{part}, {kind}" for part in parts for kind in ("fp32", "fp16")}
    assert told["launches, fp16"] == dict.fromkeys(parts, "not counted: there is no driver")
    assert told["share of the NMS, fp32"] > 0
    told = run(detector.pytorch, request_of)
    assert told["latency_ms"]["PyTorch eager fp32, batch 1"]["p50"] > 0


def test_the_stages_of_tensorrt_rtx(request_of: dict[str, Any]) -> None:
    told = run(rtx.validity, request_of)
    assert told["status"] == "done", told
    assert told["checks"]["library's verdict"] == "ok: expected VALID, found VALID"
    assert told["cuda_graph"] == "works"
    told = run(rtx.parity, request_of)
    assert (told["golden_frames"], told["parity"]) == ("2 pass", "4 frames agree with ONNX Runtime on the CPU")
    assert set(told["arrays"].values()) == {"equal"}
    told = run(rtx.share, request_of)
    assert told["status"] == "done", told
    assert told["share"] == 0  # both engines are one here
    assert told["launches"].keys() == {"whole", "network"}
    told = run(rtx.runtime, request_of)
    assert {"with copies, batch 1", "pinned slot, batch 1"} < told["latency_ms"].keys()


def test_proposals_that_are_not_the_expected_ones_fail_the_stage(
    request_of: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models, other)
    with np.load(models / "expected-model.npz") as outputs:
        wrong = [outputs["boxes"] + 50, outputs["scores"], outputs["count"]]
    gpu_bundle._write_expected(other / "expected-model.npz", wrong)
    with pytest.raises(SelfTestError, match="frames of the bundle: golden frame 0"):
        run(rtx.parity, {**request_of, "models": str(other)})


def test_a_refused_engine_keeps_the_verdict_that_came_before(
    request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = sys.modules["tests.support.tensorrt_standin"]
    opened = standin.Library.opened

    def refusing(library: Any) -> Any:
        library.unsupported_capabilities = ("8.7",)
        return opened(library)

    monkeypatch.setattr(standin.Library, "opened", refusing)
    with pytest.raises(gpu_session.Skip, match=r"refuses the engine .* compute capability 8\.7"):
        run(rtx.validity, request_of)
    assert "library's verdict" in json.loads((Path(request_of["work"]) / "told.json").read_text())["checks"]


def test_the_limit_of_the_stage_is_judged_on_a_gpu_like_orins_alone(standin: ModuleType, tmp_path: Path) -> None:
    def verdict(capability: str, share: float) -> dict[str, Any]:
        notes = gpu_session.Notes(tmp_path / "told.json")
        engine.judge(share, standin.HostDevice(capability=capability).info, notes)
        notes.end("done")
        return dict(json.loads((tmp_path / "told.json").read_text()))

    assert verdict("8.7", 0.2)["status"] == "failed"
    assert "takes 20.0% of the engine" in verdict("8.7", 0.2)["reason"]
    assert verdict("8.7", 0.1) == {"status": "done", "reason": ""}
    assert verdict("9.0", 0.9)["verdict"] == "reported only: the limit is for compute capability 8.7"


def test_the_kernels_make_the_bits_of_the_reference(tmp_path: Path) -> None:
    """CUDA C compiled for the CPU: the text is plain C but for the thread's place in the grid."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = tmp_path / "kernels.cpp"
    source.write_text(
        "struct Place { int x, y; }; static Place blockIdx, blockDim, threadIdx;\n#define __global__\n"
        + shim.KERNELS
        + """
extern "C" void run(unsigned long long frames, unsigned long long sums, unsigned long long boxes,
                    unsigned long long scores, unsigned long long count, int frame_bytes, int rows, int images) {
    blockDim.x = 32;
    for (int step = 0; step < 2; step++)
        for (blockIdx.y = 0; blockIdx.y < images; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x * 32 < rows; blockIdx.x++)
                for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++)
                    if (step) spread_sums(sums, boxes, scores, count, rows);
                    else sum_bytes(frames, sums, frame_bytes, rows);
}
"""
    )
    library = tmp_path / "kernels.so"
    subprocess.run([compiler, "-x", "c++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for hw, rows in (((90, 150), 100), ((7, 5), 100), ((8, 10), 24)):
        frames = np.random.default_rng(rows).integers(0, 256, (3, *hw, 3), dtype=np.uint8)
        sums = np.zeros((3, rows), np.uint32)
        outputs = np.zeros((3, rows, 4), np.float32), np.zeros((3, rows), np.float32), np.zeros(3, np.int32)
        addresses = [ctypes.c_ulonglong(array.ctypes.data) for array in (frames, sums, *outputs)]
        ctypes.CDLL(str(library)).run(*addresses, hw[0] * hw[1] * 3, rows, 3)
        for found, wanted in zip(outputs, shim.hashes(frames, rows)[:3], strict=True):
            np.testing.assert_array_equal(found, wanted)


CHILD = """
import os, signal, sys
from benchmarks.gpu import child
step = sys.argv[1]
notes = child.Notes(child.Path(sys.argv[3]))
notes(before=step)
if step == "ring":
    os.kill(os.getpid(), signal.SIGSEGV)
elif step == "detector":
    signal.pause()
elif step == "validity":
    sys.modules["tensorrt_rtx"] = None
    child.STEPS["validity"] = "importing"
    sys.modules["benchmarks.gpu.importing"] = module = type(sys)("importing")
    module.validity = lambda request, notes: __import__("tensorrt_rtx")
    sys.exit(child.main())
elif step == "nms":
    raise RuntimeError("a plain error")
notes.end("done")
"""


@pytest.fixture
def packed(models: Path, tmp_path: Path) -> Path:
    """A bundle without TensorRT-RTX."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    archive = gpu_bundle.pack(
        folder / gpu_bundle.MODELS, {file.name: file for file in models.iterdir()}, is_program=False
    )
    (folder / "bundle.json").write_text(json.dumps({"files": {archive.name: {}}}))
    return folder


def check(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["check", *map(str, words)])
    return gpu_check.main()


def test_no_stage_takes_another_with_it_and_a_later_call_does_the_rest(
    packed: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(gpu_session, "CHILD", ("-c", CHILD))
    wanted = ("A1", "A2", "A3", "B1", "A4", "A5")
    # The hanging one alone has a short limit: any other may be slow on a busy machine.
    stages = [dataclasses.replace(stage, limit_s=2 if stage.key == "A3" else 120) for stage in gpu_check.STAGES]
    monkeypatch.setattr(gpu_check, "STAGES", tuple(stage for stage in stages if stage.key in wanted))
    out = tmp_path / "out"
    assert check(monkeypatch, packed, "--out", out) == 1
    lines = {line["key"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert {key: line["status"] for key, line in lines.items()} == {
        "A1": "done", "A2": "failed", "A3": "failed", "B1": "skipped", "A4": "failed", "A5": "done",
    }  # fmt: skip
    assert "ended by SIGSEGV" in lines["A2"]["reason"]
    assert lines["A2"]["figures"] == {"before": "ring"}
    assert lines["A3"]["reason"] == "stopped after 2 s"
    assert lines["B1"]["reason"] == "the Python module tensorrt_rtx is not installed here"
    assert lines["A4"]["reason"] == "exit status 1: RuntimeError: a plain error"
    page = (out / "results.md").read_text()
    assert "| A2 the runner on kernels of CuPy, bit by bit | failed |" in page
    assert page in capsys.readouterr().out
    # A line that a full disk or a lost machine cut off does not stop the next call.
    with (out / "results.jsonl").open("a") as file:
        file.write('{"key": "A5", "da')
    monkeypatch.setattr(gpu_session, "CHILD", ("-c", CHILD.replace("signal.SIGSEGV", "0")))
    assert check(monkeypatch, packed, "--out", out, "--skip-done", "--stage", "A1", "--stage", "a2") == 1
    assert "done before      A1 machine" in capsys.readouterr().out
    assert gpu_check.Results(out).is_done("A2")
    assert not gpu_check.Results(out).is_done("A3")


def test_the_time_for_all_stages_ends_and_the_rest_is_skipped(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(monkeypatch, packed, "--out", tmp_path / "out", "--minutes", 0, "--stage", "C") == 2
    records = [record for _, record in gpu_check.Results(tmp_path / "out").records.values()]
    assert {record.reason for record in records} == {"out of time: raise --minutes"}


def test_a_folder_that_is_no_bundle_and_a_stage_that_is_none_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"expected a folder of benchmarks\.gpu\.bundle"):
        check(monkeypatch, tmp_path, "--out", tmp_path / "out")
    with pytest.raises(SystemExit):
        check(monkeypatch, tmp_path, "--stage", "D1")
    assert "expected a letter or one of A1, A2" in capsys.readouterr().err


def test_an_archive_in_parts_comes_back_whole_and_names_a_part_that_is_missing(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    (tmp_path / "library.so").write_bytes(content)
    archive = gpu_bundle.pack(tmp_path / "x.tar.xz", {"package/library.so": tmp_path / "library.so"}, is_program=True)
    gpu_bundle.split(archive, 40_000)
    parts = sorted(tmp_path.glob("x.tar.xz*"))
    assert [part.name for part in parts] == ["x.tar.xz.00", "x.tar.xz.01", "x.tar.xz.02"]
    (tmp_path / "bundle.json").write_text(json.dumps({"files": {part.name: {} for part in parts}}))
    target = gpu_bundle.unpack(tmp_path, "x.tar.xz", tmp_path / "there")
    assert target is not None
    assert (target / "package" / "library.so").read_bytes() == content
    parts[1].unlink()
    assert gpu_bundle.unpack(tmp_path, "x.tar.xz", target) == target  # it is there already
    with pytest.raises(gpu_session.Skip, match=r"x\.tar\.xz\.01 of the bundle did not come along"):
        gpu_bundle.unpack(tmp_path, "x.tar.xz", tmp_path / "elsewhere")
    assert gpu_bundle.unpack(tmp_path, "other.tar.xz", tmp_path / "elsewhere") is None


@pytest.mark.slow
def test_the_site_of_a_bundle_imports_without_an_installation(tmp_path: Path) -> None:
    gpu_bundle.copy_site(tmp_path / "site")
    code = "import benchmarks.gpu.check, benchmarks.gpu.ring, benchmarks.gpu.rtx, edgerpn.train.network.detector as d\n"
    code += "import sys; print(d.__file__, sys.modules['benchmarks.gpu.ring'].__file__, 'cv2' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, timeout=120, check=True
    )
    *modules, has_cv2 = done.stdout.split()
    assert all(module.startswith(str(tmp_path / "site")) for module in modules)
    assert has_cv2 == "False"


COUNT = """
from benchmarks.gpu.launches import count_launches
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
device = open_device()
with device.active():
    stream, address, host = device.create_stream(), device.allocate(100), device.allocate_host(100, is_mapped=False)
    def copies():
        for _ in range(3):
            device.upload(address, host.array, stream)
    def fails():
        raise ValueError("of a package")
    print("counted", count_launches(stream, copies), count_launches(stream, fails))
    device.upload(address, host.array, stream)  # the failed capture was ended
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux" or importlib.util.find_spec("cuda") is None,
    reason="the stand-in driver needs Linux, a C compiler and cuda-bindings",
)
def test_launches_are_the_nodes_of_a_graph(tmp_path: Path, root: Path) -> None:
    words = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(root / "tests/support/host_cuda.c")]
    subprocess.run([*words, "-ldl", "-Wl,-soname,libcuda.so.1"], check=True, capture_output=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": ""}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=60, check=False, env=environment,
        cwd=root,
    )  # fmt: skip
    assert "counted {'memcpy': 3} ValueError: of a package" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_dress_rehearsal_of_every_stage(
    packed: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    words = ("--out", tmp_path / "out", "--rehearse", "--seconds", 0)
    assert check(monkeypatch, packed, *words) == 0
    found = {key: record for key, (_, record) in gpu_check.Results(tmp_path / "out").records.items()}
    assert list(found) == [stage.key for stage in gpu_check.STAGES]
    assert {key for key, record in found.items() if record.status == "skipped"} <= {"C2", "C3"}
    assert found["C2"].reason == "a rehearsal compiles nothing"
