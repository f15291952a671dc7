"""The parts of a build that need no library: options, tries, progress, checks of files, and descriptions of errors."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgerpn import settings
from edgerpn.errors import BuildError
from edgerpn.export.engine import cli as build_cli
from edgerpn.export.engine import libraries as build_libraries
from edgerpn.export.engine.build import build_engine, check_graph
from edgerpn.export.engine.cache import timing_cache_file
from edgerpn.export.engine.layers import RUNS, WARM_UP, _time_layers, inspect_layers, read_layers
from edgerpn.export.engine.libraries import BuildEnvironment, BuildMachine
from edgerpn.export.engine.options import MAX_TRIES, BuildConfig
from edgerpn.export.engine.output import check_paths, check_room
from edgerpn.export.engine.process import MAX_LINES, BuildOutcome, LogLines
from edgerpn.export.engine.progress import PhaseTracker, ProgressDisplay
from edgerpn.export.engine.report import explain
from edgerpn.machine import available_bytes
from edgerpn.runtime.backends.tensorrt.library import logger_of
from tests.support.models import make_manifest

HERE = BuildMachine(platform="linux-x86_64")


def steps(config: BuildConfig) -> list[tuple[int | None, int | None]]:
    return [(step.workspace_mib, step.optimization_level) for step in config.attempts()]


def test_attempts_lower_workspace_and_level_and_end() -> None:
    assert steps(BuildConfig()) == [(None, None), (1024, None), (256, 2), (256, 0)]
    assert steps(BuildConfig(workspace_mib=4000, optimization_level=5)) == [(4000, 5), (2000, 5), (500, 2), (500, 0)]
    assert steps(BuildConfig(workspace_mib=64, optimization_level=0)) == [(64, 0)]
    for workspace in (1, 100, 1 << 20):
        attempts = BuildConfig(workspace_mib=workspace).attempts()
        assert len(attempts) <= MAX_TRIES
        assert len(set(attempts)) == len(attempts)
        assert all(step.batch == attempts[0].batch for step in attempts)


def test_no_attempt_takes_more_memory_than_the_first() -> None:
    for workspace in (1, 32, 63, 64, 65, 300):
        assert all((step.workspace_mib or 0) <= workspace for step in BuildConfig(workspace_mib=workspace).attempts())


def test_a_library_lists_the_options_that_it_does_not_have() -> None:
    asked = BuildConfig(version_compatible=True, hardware_compatible=True, timing_cache="a", dla_core=0)
    names = [problem.partition(":")[0] for problem in asked.problems("tensorrt-rtx")]
    assert names == ["version_compatible", "hardware_compatible", "timing_cache", "dla_core"]
    assert asked.problems("tensorrt") == []
    assert BuildConfig(timing_cache="off").problems("tensorrt-rtx") == []
    assert len(BuildConfig(compute_capabilities=("8.6",)).problems("tensorrt")) == 1


def test_shares_of_nested_phases_add_up_and_never_decrease() -> None:
    told: list[tuple[str, float]] = []
    tracker = PhaseTracker(lambda name, share: told.append((name, share)), interval_s=0)
    tracker.start("whole", None, 4)
    tracker.step("whole", 0)
    tracker.start("part", "whole", 2)
    tracker.step("part", 0)
    assert told == [("whole", 0.0), ("whole", 0.25), ("part", 0.25), ("part", 0.375)]
    tracker.finish("part")
    tracker.start("part", "whole", 10)  # names come again
    assert told[-1] == ("part", 0.375)
    tracker.step("whole", 3)
    assert told[-1] == ("whole", 1.0)
    tracker.finish("whole")
    tracker.finish("whole")
    assert sorted(tracker.seconds) == ["part", "whole"]


def test_phases_that_name_each_other_as_parents_do_not_hang() -> None:
    tracker = PhaseTracker(lambda *_: None)
    tracker.start("a", "b", 2)
    tracker.start("b", "a", 2)
    tracker.step("b", 5)


def test_progress_is_reported_at_most_once_an_interval() -> None:
    told: list[float] = []
    tracker = PhaseTracker(lambda _, share: told.append(share), interval_s=3600)
    tracker.start("whole", None, 1000)
    for step in range(1000):
        tracker.step("whole", step)
    assert told == [0.0]


def test_a_line_of_progress_has_share_phase_and_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("building a.engine", interval_s=0) as display:
        display.event({"event": "progress", "phase": "Timing graph nodes", "share": 0.25})
        display.event({"event": "built", "num_bytes": 1})
        assert display.line(20) == "building a.engine: 25%, Timing graph nodes, 20 s, about 60 s left"
        display.tick()
    assert capsys.readouterr().err.startswith("building a.engine: 25%, Timing graph nodes")


def test_a_display_is_silent_within_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("building a.engine", interval_s=60) as display:
        for _ in range(10):
            display.tick()
    assert capsys.readouterr().err == ""


def test_a_long_log_keeps_its_start_and_its_end() -> None:
    log = LogLines()
    for number in range(5 * MAX_LINES):
        log.add("info", str(number))
    kept = [int(line["text"]) for line in log.lines()]
    assert kept == [*range(MAX_LINES), *range(4 * MAX_LINES, 5 * MAX_LINES)]
    assert log.num_lines == 5 * MAX_LINES


def test_errors_come_before_warnings() -> None:
    log = LogLines()
    log.add("warning", "odd")
    assert log.complaints(3) == ["odd"]
    assert log.errors(3) == []
    for text in ("first", "second", "third"):
        log.add("error", text)
    assert log.errors(2) == log.complaints(2) == ["second", "third"]


MEMORY_ERRORS = (
    "[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further information)",
    "Requested amount of GPU memory (17179869184 bytes) could not be allocated.",
    "Cuda Error in allocate: 2 (out of memory)",
    "Unexpected exception std::bad_alloc",
)


@pytest.mark.parametrize("text", MEMORY_ERRORS)
def test_messages_of_the_libraries_about_memory_are_recognised(text: str) -> None:
    outcome = BuildOutcome(status=1, events={"failed": {"kind": "build", "message": "the library returned no engine"}})
    outcome.log.add("warning", text)  # a kernel that is left out, which does not end a build
    assert not outcome.is_out_of_memory
    outcome.log.add("error", text)
    assert outcome.is_out_of_memory


def test_a_full_disk_and_a_finished_build_are_not_out_of_memory() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"failed": {"kind": "write", "message": "No space left on device"}},
        {"built": {}},
    )
    for events in cases:
        outcome = BuildOutcome(status=1, events=events)
        outcome.log.add("error", MEMORY_ERRORS[0])
        assert not outcome.is_out_of_memory


def test_a_kill_by_the_kernel_is_distinguished_from_one_by_hand() -> None:
    progress = {"progress": {"phase": "Timing graph nodes"}}
    outcome = BuildOutcome(status=-signal.SIGKILL, events=progress, was_oom_killed=True)
    assert "by the kernel, because memory ran out; phase: Timing graph nodes" in outcome.describe_end()
    assert "or by hand" in BuildOutcome(status=-signal.SIGKILL).describe_end()


def test_a_crash_quotes_what_the_library_printed_last() -> None:
    outcome = BuildOutcome(status=-signal.SIGSEGV, printed="one\ntwo\nthree\nfour")
    text = explain(outcome)
    assert "SIGSEGV" in text
    assert "the library says: four" in text
    assert "one" not in text.split("says: ")[1:]


def test_a_library_that_cannot_start_on_this_driver_gets_advice() -> None:
    outcome = BuildOutcome(status=1)
    outcome.log.add("error", "createInferBuilder: CUDA initialization failure with error: 35")
    assert "or a newer NVIDIA driver" in explain(outcome)


def test_layers_are_read_in_the_forms_of_tensorrt_10_and_11() -> None:
    old = {"Layers": [{"Name": "conv", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}]}
    new = {"Layers": [{"Name": "conv", "Outputs": [{"Format": "kLINEAR", "DataType": "Half"}, {"DataType": "Half"}]}]}
    assert read_layers(json.dumps(old)) == [
        {"name": "conv", "precision": "Row major linear FP16 format", "time_ms": None}
    ]
    assert read_layers(json.dumps(new)) == [{"name": "conv", "precision": "Half", "time_ms": None}]
    assert read_layers(json.dumps({"Layers": ["conv"]})) == [{"name": "conv", "precision": "", "time_ms": None}]
    assert read_layers("Layers:\nconv") == read_layers("[]") == []


def test_layers_are_timed_on_black_frames_and_memory_is_returned(
    bench: Any, make_engine: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, bench.library.requires_user_memory = bench.library.module, True
    trt.nptype, trt.IProfiler = (lambda dtype: dtype.value), type("IProfiler", (), {"__init__": lambda self: None})
    bench.library.wants_largest_memory = True
    log = logger_of(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(make_engine(tmp_path).read_bytes())
    monkeypatch.setattr("edgerpn.export.engine.layers.open_device", lambda: bench.device)
    assert _time_layers(trt, log, engine, 2) == {}  # the stand-in reports no layers
    assert bench.library.events.count("enqueued") == WARM_UP + RUNS
    assert (bench.device.memory, bench.device.queues) == ({}, {})


@pytest.mark.parametrize("is_allowed", [True, False])
def test_layers_of_an_engine_with_code_for_the_cpu_are_listed_after_its_build(
    bench: Any, make_engine: Callable[..., Path], tmp_path: Path, is_allowed: bool
) -> None:
    bench.library.has_host_code = True
    plan, log = make_engine(tmp_path).read_bytes(), logger_of(bench.library.module)
    trt = bench.library.module
    trt.LayerInformationFormat = SimpleNamespace(JSON=0)
    found = inspect_layers(trt, log, plan, batch=1, is_timed=False, is_version_compatible=is_allowed)
    assert found["num_layers"] == (4 if is_allowed else None)


def test_a_dla_takes_a_fixed_batch_and_fp16_and_is_called_experimental(tmp_path: Path) -> None:
    file, manifest = tmp_path / "model.onnx", make_manifest(batch=None, source_hw=None)
    config = BuildConfig(backend="tensorrt", dla_core=0)
    with pytest.raises(BuildError, match=r"(?s)dla_core: a DLA has no dynamic batch.*fp16 and int8 only") as caught:
        check_graph(file, manifest, "tensorrt", "11.4.1.7", config)
    assert "--batch 1" in str(caught.value)


def test_a_jetson_builds_no_hardware_compatible_engines(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin = BuildMachine(platform="linux-aarch64", gpu="Orin", compute_capability="8.7", l4t="36.4.3")
    found = BuildEnvironment(library="tensorrt", version="10.3.0.26", cuda="12.6", machine=orin)
    monkeypatch.setattr("edgerpn.export.engine.build.probe", lambda *_: found)
    config, model = BuildConfig(hardware_compatible=True), make_model(tmp_path)
    with pytest.raises(BuildError, match=r"hardware_compatible: .*Jetson Linux 36\.4\.3 here"):
        build_engine(model, tmp_path / "a.engine", config)
    contained = dataclasses.replace(found, machine=dataclasses.replace(orin, l4t=None))
    monkeypatch.setattr("edgerpn.export.engine.build.probe", lambda *_: contained)
    family = tmp_path / "family"
    family.write_text("Tegra\n")
    monkeypatch.setattr("edgerpn.machine.SOC_FAMILY", family)
    with pytest.raises(BuildError, match=r"hardware_compatible: .*Jetson Linux of unknown release here"):
        build_engine(model, tmp_path / "a.engine", config)


def test_tensorrt_rtx_does_not_build_for_turing() -> None:
    config = BuildConfig(compute_capabilities=("7.5", "8.6"))
    assert config.problems("tensorrt-rtx")[0].startswith("compute_capabilities: on 7.5, TensorRT-RTX returns zeros")


def test_the_release_of_jetson_linux_is_read(tmp_path: Path) -> None:
    file = tmp_path / "nv_tegra_release"
    file.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert build_libraries._l4t(file) == "36.4.3"
    assert build_libraries._l4t(tmp_path / "none") is None


def test_the_timing_cache_is_one_file_for_each_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = BuildMachine(platform="linux-aarch64", gpu="NVIDIA Orin (nvgpu)", compute_capability="8.7")
    environment = BuildEnvironment(library="tensorrt", version="10.3.0", cuda=None, machine=machine)
    name = "tensorrt-10.3.0-NVIDIA-Orin-nvgpu-8.7.cache"
    assert timing_cache_file(BuildConfig(), environment) == (str(tmp_path / "edgerpn" / "timing" / name), None)
    orin = dataclasses.replace(machine, multiprocessors=4, board="Orin Nano", power_mode="2 MAXN_SUPER")
    precise, _ = timing_cache_file(BuildConfig(), dataclasses.replace(environment, machine=orin))
    assert Path(precise or "").name == "tensorrt-10.3.0-NVIDIA-Orin-nvgpu-8.7-4-Orin-Nano-2-MAXN-SUPER.cache"
    assert timing_cache_file(BuildConfig(timing_cache="off"), environment) == (None, None)
    assert timing_cache_file(BuildConfig(timing_cache=str(tmp_path / "a")), environment) == (str(tmp_path / "a"), None)
    assert timing_cache_file(BuildConfig(), dataclasses.replace(environment, library="tensorrt-rtx")) == (None, None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(timing_cache_file(BuildConfig(), environment)[0]).startswith(str(tmp_path / ".cache" / "edgerpn"))


def test_outputs_that_would_overwrite_other_files_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "in" / "model.onnx"
    refused = {
        tmp_path / "model.trt": r"ends in \.engine or \.plan",
        tmp_path / "folder.engine": "this is a folder",
        tmp_path / "notes.engine": r"notes\.engine\.json: not a manifest; the engine's would overwrite it",
        tmp_path / f"{'a' * 238}.engine": r"too long for a file beside it, a+\.engine\.golden\.npz;",
        tmp_path / "log.engine": r"log\.engine\.build\.json: not a build report; the new one would overwrite it",
    }
    (tmp_path / "folder.engine").mkdir()
    (tmp_path / "notes.engine.json").write_text("{}")
    (tmp_path / "log.engine.build.json").write_text("[]")
    for output, message in refused.items():
        with pytest.raises(BuildError, match=message):
            check_paths(model, output)
    with pytest.raises(BuildError, match=r"expected a model\.onnx"):
        check_paths(tmp_path / "best.pt", tmp_path / "a.engine")
    check_paths(model, tmp_path / "new" / "a.plan")
    assert (tmp_path / "new").is_dir()


def test_a_disk_without_room_for_the_engine_is_refused_before_the_build(tmp_path: Path) -> None:
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(1 << 42)  # a hole of 4 TiB takes no room
    with pytest.raises(BuildError, match="MiB free, and an engine of this model may take 83886"):
        check_room(huge, tmp_path / "a.engine", HERE, lambda _: None)


def test_scarce_memory_is_a_warning(tmp_path: Path) -> None:
    small = tmp_path / "a.onnx"
    small.write_bytes(b"x")
    lines: list[str] = []
    check_room(
        small, tmp_path / "a.engine", BuildMachine(platform="linux-x86_64", gpu="Orin", gpu_free_mib=100), lines.append
    )
    assert lines[-1].startswith("memory of the GPU is scarce: 100 MiB free")
    assert (available_bytes() or 1) > 0
    assert available_bytes(tmp_path / "none") is None


def test_every_flag_has_a_setting_and_the_settings_print_as_toml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    build_cli.add_arguments(parser)
    words = ["m.onnx", "-o", "a.engine", "--backend", "tensorrt", "--profile"]
    values = (
        "batch=[1,2,4]",
        "workspace_mib=256",
        "optimization_level=0",
        "timing_cache=off",
        "dla_core=0",
        "tf32=true",
    )
    words += [word for value in values for word in ("--set", value)]
    words += ["--version-compatible", "--hardware-compatible", "--print-config"]
    assert build_cli.run(parser.parse_args(words)) == 0
    file = tmp_path / "a.toml"
    file.write_text(capsys.readouterr().out)
    assert settings.load(BuildConfig, files=[file]) == BuildConfig(
        backend="tensorrt", batch=(1, 2, 4), workspace_mib=256, optimization_level=0, timing_cache="off", dla_core=0,
        tf32=True, profile=True, version_compatible=True, hardware_compatible=True,
    )  # fmt: skip
    capabilities = ["m.onnx", "--compute-capability", "8.6", "--compute-capability", "12.0", "--print-config"]
    assert build_cli.run(parser.parse_args(capabilities)) == 0
    assert 'compute_capabilities = ["8.6", "12.0"]' in capsys.readouterr().out
