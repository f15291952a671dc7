"""The steps of the GPU check in their order, the most important first, because the time may run out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu.models import (
    EXPORTS,
    Export,
    engine_of,
    export_of,
    export_words,
    is_open,
    lint_of,
    parity_of,
    recall_of,
)
from benchmarks.gpu.session import Figures, Session
from edgerpn.targets import LIBRARIES, TARGETS

BATCHES = (1, 4, 8)
"""Smallest, tuned for and largest batch of the engine with an open one."""


@dataclass
class Options:
    """The options of the command line."""

    checkpoint: str | None
    model: str | None
    data: str | None
    size: tuple[int, int] | None
    backend: str
    exports: tuple[str, ...] | None
    """Names of the exports to make; None: all, or those of `--quick`."""
    is_quick: bool

    def wants(self, export: Export) -> bool:
        if self.exports is not None:
            return export.name in self.exports
        return export.is_quick or not self.is_quick

    @property
    def seconds(self) -> float:
        """Time of each measurement."""
        return 0.4 if self.is_quick else 2.0


@dataclass
class Plan:
    """Runs all steps; later steps depend on the figures of earlier ones."""

    session: Session
    options: Options
    facts: Figures = field(default_factory=dict)
    """Figures of the steps `hardware`, `acceptance` and `prepare`."""
    graphs: dict[str, Path] = field(default_factory=dict)
    """ONNX files that were made, by the name of their export."""

    @property
    def no_gpu(self) -> str | None:
        """The reason why steps that need a GPU are skipped, or None."""
        return None if self.facts.get("gpu") else "there is no NVIDIA GPU, or no driver for it"

    def run(self) -> None:
        """All steps."""
        self.facts |= self.session.child("hardware", "hardware", {}, limit_s=240).figures
        asked = {"compute_capability": self.facts.get("compute_capability")}
        accepted = self.session.child("TensorRT-RTX accepts this GPU", "acceptance", asked)
        self.facts |= {"rtx_known": accepted.figures.get("known", []), "rtx_runs": accepted.figures.get("runs")}
        given = {"work": str(self.session.work), "data": self.options.data, "model": self.options.model}
        asked = {**given, "checkpoint": self.options.checkpoint, "size": self.options.size}
        prepared = self.session.child("prepare", "prepare", asked, limit_s=120)
        self.facts |= prepared.figures
        prepared.figures.pop("checkpoint", None)  # a path
        broken = None if prepared.is_done else "the pictures and the checkpoint could not be prepared"
        self._export(broken)
        for library in self._libraries():
            self._library(library)
        self._peers()
        self.session.child("clocks afterwards", "clocks", {}, why_not=self.no_gpu)

    def _libraries(self) -> list[str]:
        """Returns the libraries to build with; the others get a record with the reason."""
        chosen: list[str] = []
        for library, info in LIBRARIES.items():
            module = info.module
            why_not = None
            if self.options.backend not in ("auto", library):
                why_not = f"--backend {self.options.backend}"
            elif module not in self.facts.get("working", []):
                why_not = f"it does not import here: {self.facts.get('modules', {}).get(module, 'not known')}"
            elif library == "tensorrt" and self.no_gpu:
                why_not = f"TensorRT builds on the GPU that it builds for: {self.no_gpu}"
            if why_not is None:
                chosen.append(library)
            else:
                self.session.skip(f"{library}: every step", why_not)
        return chosen

    def _export(self, why_not: str | None) -> None:
        """Exports, several at a time, then checks them for the targets."""
        if self.options.model is not None:
            self.graphs = {"model": Path(self.options.model)} if why_not is None else {}
        else:
            wanted = [export for export in EXPORTS if self.options.wants(export)]
            cores = os.cpu_count() or 1
            workers = max(1, min(len(wanted), cores // 2))
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda export: self._export_one(export, why_not, max(1, cores // workers)), wanted))
        for name, graph in self.graphs.items():
            if "-" not in name:
                self._lint(name, graph)

    def _target(self) -> str:
        wants_rtx = self.options.backend == "tensorrt-rtx" or "tensorrt" not in self.facts.get("working", [])
        return "tensorrt-rtx" if wants_rtx else "tensorrt"

    def _export_one(self, export: Export, why_not: str | None, threads: int) -> None:
        output = self.session.work / f"{export.name}.onnx"
        size = "x".join(map(str, self.options.size)) if self.options.size else None
        words = export_words(
            export, checkpoint=self.facts.get("checkpoint", ""), output=output, target=self._target(), size=size,
            data=None if self.options.is_quick else self.options.data, pictures=self.session.work / "pictures",
        )  # fmt: skip
        record = self.session.edgerpn(
            f"export {export.name}",
            words,
            why_not=why_not,
            # On a small computer one takes minutes, and the others need their part of the time, too.
            limit_s=max(300, 30 * self.session.minutes),
            threads=threads,
            read=partial(export_of, output),
        )
        if record.is_done:
            self.graphs[export.name] = output

    def _lint(self, name: str, graph: Path) -> None:
        for target in [row.name for row in TARGETS.values() if row.library == self._target()]:
            report = self.session.work / f"lint-{name}-{target}.json"
            words = ["check", graph, "--target", target, "-o", report]
            self.session.edgerpn(f"check {name} for {target}", words, read=partial(lint_of, report))

    def _library(self, library: str) -> None:
        """Everything with one library, the engine in half precision first."""
        first = "model" if self.options.model else "fp16"
        engines = {first: self._engine(library, first)}
        self._measure(library, first, engines[first], is_first=True)
        if "fp16-all" in self.graphs:
            engines["fp16-all"] = self._engine(library, "fp16-all")
        self._stage(library, first, engines)
        for name in ("fp32", "fp16-dynamic", "int8", "fp16-source"):
            if name in self.graphs:
                engines[name] = self._engine(library, name)
                self._measure(library, name, engines[name])
        if library == "tensorrt" and not self.options.is_quick:
            self._engine(library, first, suffix="-version-compatible", words=["--version-compatible"])

    def _engine(self, library: str, name: str, *, suffix: str = "", words: Sequence[str] = ()) -> Path | None:
        """Builds; returns the engine, or None."""
        graph = self.graphs.get(name)
        output = self.session.work / f"{name}-{library}{suffix}.engine"
        command = ["build", graph or name, "-o", output, "--backend", library, *words]
        if graph is not None and is_open(graph):
            command += ["--set", f"batch={list(BATCHES)}"]
        command += self._capability_words(library)
        why_not = None if graph is not None else f"{name}.onnx was not exported"
        record = self.session.edgerpn(
            f"{library}: build {name}{suffix}", command, why_not=why_not, limit_s=240, read=partial(engine_of, output)
        )
        return output if record.is_done else None

    def _capability_words(self, library: str) -> list[str]:
        capability = self.facts.get("compute_capability")
        if library != "tensorrt-rtx" or capability is None:
            return []
        is_named = f"SM{capability.replace('.', '')}" in self.facts.get("rtx_known", [])
        return ["--compute-capability", str(capability)] if is_named else []

    def _measure(self, library: str, name: str, engine: Path | None, *, is_first: bool = False) -> None:
        """Steps of one engine: whether it runs here, parity, recall and times."""
        title, options = f"{library}: {name}", self.options
        why_not = self.no_gpu or (None if engine is not None else "there is no engine")
        refused = why_not or self._refusal(library) or self._inspect(library, name, engine)
        batches = sorted(set(BATCHES)) if name in self.graphs and is_open(self.graphs[name]) else [1]
        request: Figures = {
            "engine": str(engine), "library": library, "batches": batches, "seconds": options.seconds,
            "frames": str(self.session.work / "frames.npy"), "camera": str(self.session.work / "camera.npy"),
        }  # fmt: skip
        if not name.endswith("-source"):
            self._parity(library, name, engine, refused)
            self.session.child(f"{title}, engine alone", "engine", request, why_not=why_not)
        self.session.child(f"{title}, in the runtime", "runner", request, why_not=refused)
        if is_first:
            self.session.child(f"{title}, two streams", "streams", request, why_not=refused)

    def _refusal(self, library: str) -> str | None:
        """Returns the library's reason why its engines do not run on this GPU, or None."""
        answer = self.facts.get("rtx_runs")
        if self.no_gpu or library != "tensorrt-rtx" or answer == "accepted":
            return self.no_gpu
        return f"TensorRT-RTX on compute capability {self.facts.get('compute_capability')}: {answer or 'not found out'}"

    def _inspect(self, library: str, name: str, engine: Path | None) -> str | None:
        """Returns the reason of `edgerpn inspect` against running the engine here, or None."""
        record = self.session.edgerpn(f"{library}: inspect {name}", ["inspect", engine])
        return None if record.is_done else f"`edgerpn inspect`: {record.reason}"

    def _parity(self, library: str, name: str, engine: Path | None, why_not: str | None) -> None:
        options, work = self.options, self.session.work
        report = work / f"parity-{name}-{library}.json"
        words = ["check", engine, "--against", self.graphs.get(name), "--images", work / "pictures", "-o", report]
        record = self.session.edgerpn(
            f"{library}: {name} against ONNX", words, why_not=why_not, read=partial(parity_of, report)
        )
        if record.status == "failed" and self.facts.get("weights") == "random" and name != "fp32" and record.figures:
            record.status, record.reason = "done", f"not judged, as the weights are random: {record.reason}"
        if options.data is None:
            why_not = "no annotated photographs: name them with --data"
        elif self.facts.get("weights") == "random":
            why_not = "the weights are random"
        recall = work / f"recall-{name}-{library}.json"
        words = ["eval", engine, "--data", work / "val.json", "--images", Path(options.data or "") / "images"]
        words += ["-o", recall]
        self.session.edgerpn(f"{library}: AR of {name}", words, why_not=why_not, read=partial(recall_of, recall))

    def _stage(self, library: str, name: str, engines: dict[str, Path | None]) -> None:
        work, graph, whole = self.session.work, self.graphs.get(name), engines.get(name)
        cut = work / f"{name}-network.onnx"
        why_not = None if graph is not None else f"{name}.onnx was not exported"
        made = self.session.child(
            f"{library}: cut {name} at the head", "cut", {"onnx": str(graph), "cut": str(cut)}, why_not=why_not
        )
        every = engines.get("fp16-all")
        request = {
            "library": library, "cut": str(cut), "whole": str(whole), "all_candidates": str(every) if every else None,
            "compute_capability": self.facts.get("compute_capability"), "has_gpu": self.no_gpu is None,
            "frames": str(work / "frames.npy"), "seconds": 2 * self.options.seconds,
        }  # fmt: skip
        why_not = None if made.is_done and whole is not None else "there is no engine, or no network to compare with"
        self.session.child(f"{library}: share of the proposal stage", "stage", request, why_not=why_not, limit_s=240)

    def _peers(self) -> None:
        """PyTorch and ONNX Runtime with the same network."""
        options, work = self.options, self.session.work
        common = {"frames": str(work / "frames.npy"), "seconds": options.seconds}
        graph = self.graphs.get("model" if options.model else "fp32")
        no_checkpoint = "--model names no checkpoint" if options.model else None
        request = {**common, "checkpoint": self.facts.get("checkpoint"), "onnx": str(graph), "models": str(work)}
        for mode, precision in (("eager", "fp32"), ("eager", "fp16"), ("compiled", "fp16"), ("compiled", "fp32")):
            why_not = self.no_gpu or no_checkpoint or (None if graph is not None else "fp32.onnx was not exported")
            if options.is_quick and mode == "compiled" and precision == "fp32":
                continue
            asked = {**request, "mode": mode, "precision": precision}
            limit_s = 150 if mode == "compiled" else 90
            self.session.child(f"PyTorch {mode} {precision}", "pytorch", asked, why_not=why_not, limit_s=limit_s)
        for provider in ("cuda", "tensorrt"):
            for name in ("fp16", "fp32") if options.model is None else ("model",):
                graph = self.graphs.get(name)
                why_not = self.no_gpu or (None if graph is not None else f"{name}.onnx was not exported")
                asked = {**common, "onnx": str(graph), "provider": provider, "label": name}
                title = f"ONNX Runtime {provider} {name}"
                self.session.child(title, "onnxruntime", asked, why_not=why_not, limit_s=150)
