"""A loaded model: frames in, proposals out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgerpn import golden
from edgerpn.errors import InputError
from edgerpn.manifest import Manifest
from edgerpn.proposals import Proposals
from edgerpn.runtime.backends.contract import Backend, Outputs, Provider
from edgerpn.runtime.backends.open_backend import OnMismatch, open_backend
from edgerpn.runtime.backends.preprocess import Preprocessor, check_image
from edgerpn.runtime.event_log import log_event
from edgerpn.runtime.frame import Frame, Result, Source
from edgerpn.runtime.pipeline import Pipeline
from edgerpn.runtime.sources.live_source import open_any_source
from edgerpn.runtime.timing import Stopwatch

_logger = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    on_mismatch: OnMismatch = "fail",
    self_test: bool = False,
    allow_host_code: bool = False,
) -> Model:
    """Loads an exported model or an engine.

    An engine is a program: never load one that comes from somebody you do not trust.

    Args:
        path: `model.onnx` or `model.engine`, with its manifest beside it (or inside, for ONNX).
        providers: ONNX Runtime execution providers in order of preference ("tensorrt", "cuda", "cpu", or full names,
            each alone or as a pair with its options); None: CUDA if it is there, else the CPU.
        threads: CPU threads of one inference; None: one for each core that this process may use. Engines use none.
        on_mismatch: Reaction to an engine built for another machine or version, see `edgerpn inspect`:
            `fail` is an error; `rebuild` builds it again from the ONNX file beside it, which takes minutes.
        self_test: Whether to run the golden frames beside the model first, and to refuse it if the proposals are
            not the expected ones.
        allow_host_code: Let a version-compatible engine bring code that runs on the CPU.

    Returns:
        The model; close it, or use it in a `with` block.

    Raises:
        EngineLoadError: No backend runs such a file, or the backend cannot load it.
        ManifestError: The file or its manifest is missing or malformed, or they do not belong together.
        SelfTestError: The golden frames did not give the expected proposals.
        MissingDependencyError: The backend or OpenCV is not installed.
    """
    backend = open_backend(
        path, providers=providers, threads=threads, on_mismatch=on_mismatch, allow_host_code=allow_host_code
    )
    try:
        if self_test:
            run_self_test(path, backend)
        return Model(backend)
    except BaseException:
        backend.close()
        raise


def run_self_test(path: str | os.PathLike[str], backend: Backend) -> None:
    """Runs the golden frames that lie beside a model, together and one by one.

    Raises:
        ManifestError: There are none, or they cannot be read.
        SelfTestError: They did not give the expected proposals.
        InferenceError: The backend failed on them.
    """
    expected = golden.read(path, backend.manifest)
    where = f"{os.fspath(path)} on {backend.name}"
    golden.compare(expected, backend.infer(expected.frames), backend.manifest, where=where)
    alone = [backend.infer(expected.frames[i : i + 1]) for i in range(len(expected.frames))]
    boxes, scores, count = (np.concatenate(arrays) for arrays in zip(*alone, strict=True))
    golden.compare(expected, (boxes, scores, count), backend.manifest, where=where)
    _logger.info("%s: the golden frames gave the expected proposals", where)


class Model:
    """Gives proposals for frames; threads may share it."""

    def __init__(self, backend: Backend) -> None:
        """Takes over `backend`; `load` is the usual way to a model."""
        self._backend = backend
        self._preprocessor = Preprocessor(backend.manifest)

    @property
    def manifest(self) -> Manifest:
        """What the model is."""
        return self._backend.manifest

    @property
    def backend(self) -> Backend:
        """What runs it."""
        return self._backend

    def __call__(self, frame: npt.NDArray[np.uint8]) -> Proposals:
        """The proposals of one frame.

        Args:
            frame: (H, W, 3) uint8 BGR as OpenCV delivers it; of any size, unless the model was exported with
                --source-size.

        Returns:
            Boxes in pixels of `frame`, best first.

        Raises:
            InputError: The frame's type, shape or size is wrong.
            InferenceError: The backend failed.
        """
        return self._run(frame, Stopwatch())

    def batch(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Proposals]:
        """The proposals of several frames, in order; their sizes may differ. Arguments and errors as for one."""
        if not len(frames):
            return []
        images = [check_image(frame) for frame in frames]
        boxes, scores, count = self._backend.infer(
            np.concatenate([self._preprocessor.prepare(image).copy() for image in images])
        )
        return [
            self._preprocessor.restore(boxes[i], scores[i], int(count[i]), (image.shape[0], image.shape[1]))
            for i, image in enumerate(images)
        ]

    def stream(
        self,
        source: str | int | os.PathLike[str] | Source,
        *,
        workers: int | None = None,
        max_frames: int | None = None,
    ) -> Iterator[Result]:
        """The results of a video, images or a camera, in order; decoding and inference run in threads.

        Files never lose a frame; of a live source, the newest frame is taken whenever the model is free, and when it
        fails it is connected anew, for ever. What a source reports in between is logged; for several sources, events
        and limits of age use `edgerpn.runtime.run`. Leaving the loop, or closing the generator, stops the threads
        and closes the source. Pictures of a live source lie in memory of which there is little: copy what you keep.

        Args:
            source: Anything that `edgerpn run` takes, or an opened source.
            workers: Frames in the model at the same time; None: `default_workers`.
            max_frames: Frames after which to stop; None: all.

        Raises:
            StreamError: The source cannot be opened, now or ever (raised from the iteration, as all the rest).
            InputError: A frame does not fit the model.
            InferenceError: The backend failed.
        """
        opened = open_any_source(source) if isinstance(source, (str, int, os.PathLike)) else source
        with closing(iter(self.pipeline(opened, workers=workers, max_frames=max_frames))) as items:
            for item in items:
                if isinstance(item, Result):
                    yield item
                else:
                    log_event(item)

    def pipeline(self, source: Source, *, workers: int | None = None, max_frames: int | None = None) -> Pipeline:
        """The same as `stream` with events among the results, and with a `stop` that a signal handler may call."""
        workers = workers or self.default_workers(is_live=source.is_live)
        return Pipeline(source, self.run_frame, workers=workers, max_frames=max_frames)

    def default_workers(self, *, is_live: bool) -> int:
        """Frames in the model at the same time: for files, as many as make the backend faster.

        A live source gets one, because a second would only make its results older.
        """
        return 1 if is_live else self._backend.frames_in_flight

    def run_frame(self, frame: Frame) -> Result:
        """The result of one frame of a source, with the time of each stage."""
        watch = Stopwatch()
        proposals = self._run(frame.image, watch)
        return Result(proposals=proposals, frame=frame, stage_ms={"decode": frame.decode_ms, **watch.stage_ms})

    def run_frames(self, frames: Sequence[Frame], *, pool: Executor | None = None) -> list[Result | InputError]:
        """The results of frames of several sources, run together, with the time of each stage.

        Args:
            frames: At least one; their sizes may differ.
            pool: Threads that lay several frames into the network's input; None: this thread does it.

        Returns:
            A result for each frame, or the error of a frame that does not fit the model.

        Raises:
            InferenceError: The backend failed.
        """
        start_s = time.monotonic()
        height, width = self.manifest.input.frame_hw
        inputs = np.empty((len(frames), height, width, 3), np.uint8)
        fill = partial(self._fill, inputs)
        filled = list((pool.map if pool is not None and len(frames) > 1 else map)(fill, range(len(frames)), frames))
        rows = [i for i, outcome in enumerate(filled) if not isinstance(outcome, InputError)]
        if not rows:
            return [outcome for outcome in filled if isinstance(outcome, InputError)]
        infer_start_s = time.perf_counter()
        outputs = self._backend.infer(inputs if len(rows) == len(frames) else inputs[rows])
        inference_ms = (time.perf_counter() - infer_start_s) * 1e3
        results: list[Result | InputError] = []
        for frame, outcome in zip(frames, filled, strict=True):
            if isinstance(outcome, InputError):
                results.append(outcome)
                continue
            row = rows.index(len(results))
            stage_ms = {**_capture_stages(frame, start_s), "preprocess": outcome, "inference": inference_ms}
            results.append(self._restore_row(frame, outputs, row, stage_ms))
        return results

    def _fill(self, inputs: npt.NDArray[np.uint8], row: int, frame: Frame) -> float | InputError:
        """Lays a frame into its row; the milliseconds that it took."""
        start_s = time.perf_counter()
        try:
            inputs[row] = self._preprocessor.prepare(check_image(frame.image))[0]
        except InputError as error:
            # The traceback keeps the calls alive, and in them the picture and the list that will hold this error: a
            # ring, in which the picture's slot would be lost to its camera until the garbage collector comes by.
            return error.with_traceback(None)
        return (time.perf_counter() - start_s) * 1e3

    def _restore_row(self, frame: Frame, outputs: Outputs, row: int, stage_ms: dict[str, float]) -> Result:
        start_s = time.perf_counter()
        boxes, scores, count = outputs
        frame_hw = (frame.image.shape[0], frame.image.shape[1])
        proposals = self._preprocessor.restore(boxes[row], scores[row], int(count[row]), frame_hw)
        stage_ms["postprocess"] = (time.perf_counter() - start_s) * 1e3
        return Result(proposals=proposals, frame=frame, stage_ms=stage_ms)

    def _run(self, frame: npt.NDArray[np.uint8], watch: Stopwatch) -> Proposals:
        image = check_image(frame)
        network_input = self._preprocessor.prepare(image)
        watch.split("preprocess")
        boxes, scores, count = self._backend.infer(network_input)
        watch.split("inference")
        proposals = self._preprocessor.restore(boxes[0], scores[0], int(count[0]), (image.shape[0], image.shape[1]))
        watch.split("postprocess")
        return proposals

    def close(self) -> None:
        """Frees the backend; does nothing the second time."""
        self._backend.close()

    def __enter__(self) -> Model:
        """Returns the model."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Frees the backend."""
        self.close()


def _capture_stages(frame: Frame, taken_s: float) -> dict[str, float]:
    """What happened to a frame before the model took it, milliseconds."""
    wait_ms = max(0.0, (taken_s - frame.monotonic_s) * 1e3 - frame.decode_ms)
    return {"capture_lag": frame.lag_ms or 0.0, "decode": frame.decode_ms, "wait": wait_ms}
