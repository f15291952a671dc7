"""The child process of a build, and parts of TensorRT alone on small stand-ins."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import edgerpn.manifest
from edgerpn.errors import BuildError
from edgerpn.export.engine.build import check_graph, probe
from edgerpn.export.engine.cache import TimingCache, timing_cache_file
from edgerpn.export.engine.libraries import BuildEnvironment, BuildMachine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.engine.process import run_worker
from edgerpn.export.engine.worker import make_options, make_parser

pytestmark = pytest.mark.rtx

WORKER = "edgerpn.export.engine.worker"
NEW_SPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


class Cache:
    def combine(self, other: object, *, ignore_mismatch: bool) -> bool:
        return True

    def serialize(self) -> bytes:
        return b"timings"


class Options:
    """The part of IBuilderConfig for timing caches."""

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache()

    def set_timing_cache(self, cache: Cache, *, ignore_mismatch: bool) -> bool:
        return True

    def get_timing_cache(self) -> Cache:
        return Cache()


def probe_in_child(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*before, sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_a_build_runs_as_process_1_as_in_a_container() -> None:
    if shutil.which("unshare") is None or subprocess.run([*NEW_SPACE, "true"], check=False).returncode:
        pytest.skip("process namespaces are not allowed here")
    program = (
        "import os; from edgerpn.export.engine.build import probe; print(os.getpid(), probe('tensorrt-rtx').library)"
    )
    done = probe_in_child("-c", program, before=tuple(NEW_SPACE))
    assert (done.returncode, done.stdout) == (0, "1 tensorrt-rtx\n"), done.stderr


def test_a_worker_whose_parent_is_gone_ends_at_once() -> None:
    # The number is not that of its parent, as when the parent died before the worker started.
    done = probe_in_child("-m", WORKER, "1", str(os.getpid() + 1))
    assert (done.returncode, done.stdout) == (1, "")


@pytest.fixture
def many_files() -> Iterator[None]:
    """So many open files that the next ones have numbers above 1024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 1200:
        pytest.skip("so many files are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1200), limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1030:
        opened.append(os.dup(opened[0]))
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_files")
def test_a_program_with_thousands_of_open_files_can_build() -> None:
    assert probe("tensorrt-rtx").library == "tensorrt-rtx"


def test_engines_of_tensorrt_rtx_are_built_for_capture_in_cuda_graphs() -> None:
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    options = make_options(trt, builder, BuildConfig())
    assert options.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_the_parser_adjusts_a_graph_for_a_dla_only() -> None:
    import tensorrt_rtx as trt

    logger, flag = trt.Logger(trt.Logger.ERROR), trt.OnnxParserFlag.ADJUST_FOR_DLA
    builder = trt.Builder(logger)
    for core, is_set in ((None, False), (0, True)):
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert make_parser(trt, network, logger, BuildConfig(dla_core=core)).get_flag(flag) is is_set


def test_a_timing_cache_is_written_and_kept(tmp_path: Path) -> None:
    cache = TimingCache(Options(), str(tmp_path / "new" / "a.cache"))
    cache.save()
    assert (tmp_path / "new" / "a.cache").read_bytes() == b"timings"
    assert cache.note is None


def test_a_timing_cache_that_cannot_be_read_or_written_is_one_note(tmp_path: Path) -> None:
    folder = tmp_path / "a.cache"
    folder.mkdir()  # a folder in its place can be neither, even by root
    cache = TimingCache(Options(), str(folder))
    cache.save()
    assert "directory" in str(cache.note)
    assert "timing_cache=off" in str(cache.note)
    assert "\n" not in str(cache.note)
    (tmp_path / "file").write_text("")
    below = TimingCache(Options(), str(tmp_path / "file" / "a.cache"))
    below.save()
    assert str(tmp_path / "file") in str(below.note)
    without = TimingCache(Options(), None)
    without.save()
    assert without.note is None


def test_a_user_without_a_home_has_no_timing_cache_and_gets_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    machine = BuildMachine(platform="linux-aarch64", gpu="Orin", compute_capability="8.7")
    environment = BuildEnvironment(library="tensorrt", version="10.3.0", cuda=None, machine=machine)
    file, note = timing_cache_file(BuildConfig(), environment)
    assert file is None
    assert "there is no home folder; name a file with --set timing_cache=FILE" in str(note)


def test_an_operator_set_after_20_is_left_to_versions_that_may_read_it(fixed_graph: Path, tmp_path: Path) -> None:
    source = fixed_graph
    proto = onnx.load(source)
    proto.opset_import[0].version = 21
    model = tmp_path / "model.onnx"
    onnx.save(proto, model)
    edgerpn.manifest.write(edgerpn.manifest.read(source).replace(opset=21), model)
    manifest = edgerpn.manifest.read(model)
    for version in ("10.3.0.26", "10.7.0.23"):
        with pytest.raises(BuildError, match="opset 21"):
            check_graph(model, manifest, "tensorrt", version, BuildConfig())
    for version in ("10.15.1.29", "10.16.0.72"):
        told = check_graph(model, manifest, "tensorrt", version, BuildConfig())
        assert "warning: opset: file: opset 21" in str(told)
        assert "tensorrt-10.8: up to 20 in every release" in str(told)
        assert "error: " not in str(told)


def test_files_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("queue.py").write_text("raise SystemExit('the wrong file')")
    outcome = run_worker({"command": "probe", "backend": "tensorrt-rtx"}, on_event=lambda _: None, tick=lambda: None)
    assert sorted(outcome.events) == ["probed"], outcome.printed


def test_a_probe_returns_library_and_machine() -> None:
    outcome = run_worker({"command": "probe", "backend": "tensorrt-rtx"}, on_event=lambda _: None, tick=lambda: None)
    assert (outcome.status, sorted(outcome.events)) == (0, ["probed"])
