"""`python -m benchmarks.gpu` on a machine without a GPU: it does the steps that need none and reports the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.gpu import __main__ as gpu_check
from benchmarks.gpu import session as gpu_session
from edgerpn import settings
from edgerpn.train.checkpoint import Checkpoint, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.model import Rpn
from tests.support.stuck import run_until_stuck, stuck_lines

SETTINGS = (
    "data.input_hw=[128, 192]",
    "model.anchors={strides_px=[8, 16, 32], sizes_px=[[32.0], [64.0], [128.0]]}",
    "model.stage_channels=[8, 8, 16, 16, 16]",
    "model.stage_blocks=[0, 0, 0, 0, 0]",
    "model.neck_channels=16",
    "model.head_channels=16",
)


@pytest.fixture(scope="module")
def checked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """Exit status, JSON report and folder of a run with a tiny untrained network."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: run `python -m benchmarks.gpu`")
    out = tmp_path_factory.mktemp("gpu-check")
    resolved = settings.load(TrainSettings, overrides=SETTINGS)
    torch.manual_seed(0)
    model = Rpn(resolved.model)
    save_checkpoint(Checkpoint(settings=resolved, weights=model.state_dict(), step=0), out / "tiny.pt")
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--quick",
        "--exports",
        "fp16",
        "--checkpoint",
        str(out / "tiny.pt"),
    ]
    done = subprocess.run(
        [*words, "--out", str(out / "report"), "--work", str(out / "work")],
        capture_output=True, text=True, timeout=280, check=False, cwd=root,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stdout + done.stderr
    (report,) = (out / "report").glob("gpu_no-gpu_*.json")
    assert report.with_suffix(".md").read_text(encoding="utf-8") in done.stdout
    return done.returncode, json.loads(report.read_text(encoding="utf-8")), out


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in report["steps"]}


@pytest.mark.slow
def test_without_a_gpu_everything_that_needs_none_is_done_and_the_rest_says_why_not(checked: Any) -> None:
    status, report, _ = checked
    found = statuses(report)
    assert status == 2, [step for step in report["steps"] if step["status"] == "failed"]
    for name in ("hardware", "prepare", "export fp16"):
        assert found[name] == "done"
    skipped = [step for step in report["steps"] if step["status"] == "skipped"]
    assert skipped
    assert all(step["reason"] for step in skipped)
    assert {found["PyTorch eager fp32"], found["ONNX Runtime cuda fp16"]} == {"skipped"}


@pytest.mark.slow
@pytest.mark.rtx
def test_tensorrt_rtx_builds_without_a_gpu(checked: Any) -> None:
    _, report, _ = checked
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["tensorrt-rtx: build fp16"]["figures"]["mb"] > 0
    assert steps["tensorrt-rtx: fp16, engine alone"]["reason"] == "there is no NVIDIA GPU, or no driver for it"
    assert steps["TensorRT-RTX accepts this GPU"]["figures"]["runs"] == "not tried: there is no NVIDIA GPU"
    assert steps["tensorrt-rtx: share of the proposal stage"]["figures"]["network_mb"] > 0


@pytest.mark.slow
@pytest.mark.rtx
def test_the_cut_network_ends_at_the_logits_and_deltas_of_every_level(checked: Any) -> None:
    _, _, out = checked
    graph = onnx.load(out / "work" / "fp16-network.onnx").graph
    assert {node.op_type for node in graph.node}.isdisjoint({"TopK", "MatMul", "Sigmoid"})
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output]
    cells = [[16, 24], [8, 12], [4, 6]]
    assert sorted(shapes) == sorted([1, channels, *level] for level in cells for channels in (1, 4))
    whole, alone = (
        onnxruntime.InferenceSession(str(out / "work" / name), providers=["CPUExecutionProvider"])
        for name in ("fp16.onnx", "fp16-network.onnx")
    )
    frames = np.load(out / "work" / "frames.npy")[:1]
    logits = [part for part in alone.run(None, {"frames": frames}) if part.shape[1] == 1]
    best = 1 / (1 + np.exp(-max(float(part.max()) for part in logits)))
    np.testing.assert_allclose(whole.run(["scores"], {"frames": frames})[0].max(), best, rtol=1e-2)


@pytest.mark.slow
def test_the_report_names_no_folder_of_this_machine(checked: Any) -> None:
    _, report, out = checked
    commands = [step["command"] for step in report["steps"] if step["command"]]
    assert any(command.startswith("edgerpn export CHECKPOINT -o WORK/fp16.onnx") for command in commands)
    assert str(out) not in json.dumps({**report, "modules": None})


@pytest.fixture
def session(tmp_path: Path) -> Any:
    return gpu_session.Session(tmp_path, minutes=1, names={})


def test_a_command_that_fails_is_a_failed_step_with_its_message(session: Any) -> None:
    record = session.edgerpn("lint", ["check", "no-such.onnx", "--target", "onnxruntime"])
    assert record.status == "failed"
    assert "no-such.onnx" in record.reason
    assert record.command == "edgerpn check no-such.onnx --target onnxruntime"


def test_a_step_with_a_reason_against_it_is_not_run(session: Any) -> None:
    record = session.edgerpn("lint", ["check"], why_not="there is no GPU")
    assert (record.status, record.reason, record.command) == ("skipped", "there is no GPU", "")


def test_when_the_time_is_over_the_rest_is_skipped(tmp_path: Path) -> None:
    session = gpu_session.Session(tmp_path, minutes=0, names={})
    assert session.child("hardware", "hardware", {}).reason.startswith("out of time")


def test_a_process_that_takes_too_long_is_killed_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    status, lines = gpu_session.run_process([sys.executable, "-c", code], 1, {})
    assert status is None
    assert lines == []
    assert time.monotonic() - start < 20


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_process_that_hangs_in_a_driver_is_left_behind(tmp_path: Path) -> None:
    with stuck_lines(tmp_path / "release") as stick:
        code = f"{stick}\nprint('stuck', flush=True)\ntime.sleep(3600)"
        words = [sys.executable, "-c", code]
        status, lines = run_until_stuck(lambda limit_s: gpu_session.run_process(words, limit_s, {}))
        assert (status, lines) == (None, ["stuck"])


CRASH = """
import os, sys
from benchmarks.gpu import child
sys.modules["benchmarks.gpu.crashing"] = crashing = type(sys)("crashing")
child.STEPS["crash"] = "crashing"
def crash(request, notes):
    notes(before=1)
    os.kill(os.getpid(), 11)
crashing.crash = crash
sys.exit(child.main())
"""


def test_a_step_that_crashes_keeps_what_it_measured_before(
    session: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "CHILD", ("-c", CRASH))
    monkeypatch.chdir(root)
    record = session.child("a crash", "crash", {})
    assert (record.status, record.figures) == ("failed", {"before": 1})
    assert "SIGSEGV" in record.reason


HANG = """
import sys
from benchmarks.gpu import child
sys.modules["benchmarks.gpu.hanging"] = hanging = type(sys)("hanging")
child.STEPS["hang"] = "hanging"
def hang(request, notes):
    import ctypes
    ctypes.pythonapi.sleep(60)  # holds Python's global lock
hanging.hang = hang
sys.exit(child.main())
"""


def test_a_step_that_hangs_shows_where(session: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "CHILD", ("-c", HANG))
    monkeypatch.chdir(root)
    record = session.child("a hang", "hang", {}, limit_s=20)
    assert (record.status, record.reason) == ("failed", "stopped after 20 s")
    assert any(line.endswith("in hang") for line in record.output)


def test_a_step_whose_package_is_missing_is_skipped(root: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from benchmarks.gpu import child; sys.exit(child.main())"
    asked, told = tmp_path / "asked.json", tmp_path / "told.json"
    asked.write_text('{"limit_s": 60}')
    subprocess.run([sys.executable, "-c", code, "pytorch", str(asked), str(told)], check=True, timeout=60, cwd=root)
    result = json.loads(told.read_text())
    assert (result["status"], "torch" in result["reason"]) == ("skipped", True)


def test_a_broken_check_makes_a_finished_step_fail(tmp_path: Path) -> None:
    notes = gpu_session.Notes(tmp_path / "told.json")
    notes(share=0.4)
    notes.broken("the share is too large")
    notes.end("done")
    assert json.loads((tmp_path / "told.json").read_text()) == {
        "share": 0.4, "status": "failed", "reason": "the share is too large",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "has_gpu", "status"), [(False, True, 0), (False, False, 2), (True, True, 1), (True, False, 1)]
)
def test_the_exit_status_distinguishes_failures_from_a_missing_gpu(failed: bool, has_gpu: bool, status: int) -> None:
    record = gpu_session.Record
    records = [record(name="a", status="done"), record(name="b", status="skipped", reason="none")]
    records += [record(name="c", status="failed", reason="broken")] if failed else []
    assert gpu_check.exit_status(records, has_gpu=has_gpu) == status


def test_the_table_shows_times_engines_and_the_reason_of_every_step() -> None:
    record = gpu_session.Record
    times = {"p50": 1.25, "p90": 1.5, "p99": 2.0, "mean": 1.3, "rounds": 40}
    engine = {"build_s": 3.0, "library_version": "10.3.0", "compute_capabilities": ["8.7"], "batches": [1, 4, 8],
              "mb": 5.0, "layers": 77}  # fmt: skip
    parity = {"unmatched_share": 0.01, "num_images": 16, "agrees": True, "iou": {"min": 0.9}}
    records = [
        record(name="build fp16", status="done", figures=engine),
        record(name="against ONNX", status="done", figures=parity),
        record(name="alone", status="done", figures={"latency_ms": {"graph": times}, "cuda_graph": {"graph": "works"}}),
        record(name="share", status="failed", reason="20 % | too much", figures={"share": 0.2}, output=["last line"]),
    ]
    text = gpu_check.report({"hardware": "Orin", "empty": None}, records)
    assert text.startswith("# GPU check: Orin\n\n- hardware: Orin\n\n## share\n\n- share: 0.2")
    for row in (
        "| build fp16 | 10.3.0 | 8.7 | 1, 4, 8 | 5.0 | 77 | 3.0 |",
        "| against ONNX | 16 | True | 1.00% | 0.9 |  |  |",
        "| alone | graph | 1.25 | 1.5 | 2.0 | 40 |",
        "| alone | graph | works |",
        "| share | failed | 0.0 | 20 % \\| too much |",
        "### share: last lines\n\n```\nlast line\n```",
    ):
        assert row in text
