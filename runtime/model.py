"""A loaded model: frames in, proposals out."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgerpn import golden
from edgerpn.errors import EngineLoadError, InferenceError, InputError, StreamOpenError
from edgerpn.letterbox import letterbox
from edgerpn.machine import NO_THREADS
from edgerpn.manifest import Manifest
from edgerpn.models import find_model
from edgerpn.proposals import Outputs, Proposals
from edgerpn.runtime.backends.contract import Backend, EngineConfig
from edgerpn.runtime.backends.open_backend import OnMismatch, open_backend
from edgerpn.runtime.backends.preprocess import Preprocessor, check_image, in_frame
from edgerpn.runtime.backends.served.config import ServerConfig, is_served
from edgerpn.runtime.frame import Frame, Result, Source
from edgerpn.runtime.onnx_session import Provider
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.redaction import redact_url
from edgerpn.runtime.tracing import span

if TYPE_CHECKING:
    from edgerpn.runtime.run.streams_config import SourceConfig
    from edgerpn.runtime.tracking.config import TrackConfig

_logger = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    on_mismatch: OnMismatch = "fail",
    self_test: bool = False,
    allow_host_code: bool = False,
    engine: EngineConfig | None = None,
    server: ServerConfig | None = None,
    verify: bool = True,
) -> Model:
    """Loads an exported model or an engine, or connects to a server that runs one.

    An engine is a program: never load one from a source that you do not trust.

    Args:
        path: `model.onnx` or `model.engine`, with its manifest beside it (or inside, for ONNX); or the name of a model
            that an installed package brings, such as `general`, see `edgerpn.models`; or the address of a model on a
            server, such as `http://triton:8000/street` or `triton+grpc://triton:8001/street`.
        providers: ONNX Runtime execution providers in order of preference ("tensorrt", "cuda", "cpu", or full names,
            each alone or as a pair with its options); None: CUDA if available, else the CPU.
        threads: CPU threads of one inference; None: one for each core that this process may use. Engines use none.
        on_mismatch: Reaction to an engine built for another machine or version, see `edgerpn inspect`:
            `fail` is an error; `rebuild` builds it again from the ONNX file beside it, which takes minutes.
        self_test: Whether to run the golden frames beside the model first, and to refuse it if the proposals are
            not the expected ones.
        allow_host_code: Whether a version-compatible engine may bring code that runs on the CPU.
        engine: Slots of an engine, and how threads wait for the GPU; None: the defaults.
        server: Limits of time, credentials and certificates of a server; None: the defaults.
        verify: False loads an ONNX file that was changed since export, with a warning in the log; see `edgerpn check`
            for a proof that it still computes the same. An engine is always verified.

    Returns:
        The model; close it, or use it in a `with` block.

    Raises:
        EngineLoadError: No model of such a name is installed, no backend runs such a file, or the backend cannot load
            it or reach its server.
        ManifestError: The file or its manifest is missing or malformed, or they do not belong together.
        SelfTestError: The golden frames did not give the expected proposals.
        MissingDependencyError: The backend or OpenCV is not installed.
    """
    if not is_served(path):
        path = find_model(path)
    elif self_test:
        raise EngineLoadError(f"{redact_url(str(path))}: run the self-test on the server, by client.py of the bundle")
    backend = open_backend(
        path,
        providers=providers,
        threads=threads,
        on_mismatch=on_mismatch,
        allow_host_code=allow_host_code,
        engine=engine,
        server=server,
        verify=verify,
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
    golden.compare(expected, Outputs.join(alone), backend.manifest, where=where)
    _logger.info("%s: the golden frames gave the expected proposals", where)


class Model:
    """Turns frames into proposals; threads may share it."""

    def __init__(self, backend: Backend) -> None:
        """Takes over `backend`; `load` is the usual way to a model."""
        self._backend = backend
        self._preprocessor = Preprocessor(backend.manifest)

    @property
    def manifest(self) -> Manifest:
        """Describes the model."""
        return self._backend.manifest

    @property
    def backend(self) -> Backend:
        """Runs the model."""
        return self._backend

    def __call__(self, frame: npt.NDArray[np.uint8]) -> Proposals:
        """Returns the proposals of one frame.

        Args:
            frame: (H, W, 3) uint8 BGR as OpenCV delivers it, or (H, W, 4) BGRx for a model exported with channels=bgrx;
                of any size, unless the model was exported with --source-size.

        Returns:
            Boxes in pixels of `frame`, best first.

        Raises:
            InputError: The frame's type, shape or size is wrong.
            InferenceError: The backend failed.
        """
        image = self._check(frame)
        with span("preprocess"):
            network_input = self._preprocessor.prepare(image)
        outputs = self._backend.infer(network_input)
        with span("postprocess"):
            return self._preprocessor.restore(outputs, 0, (image.shape[0], image.shape[1]))

    def batch(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Proposals]:
        """Returns the proposals of several frames, in order; sizes may differ. Arguments and errors as for one."""
        if not len(frames):
            return []
        images = [self._check(frame) for frame in frames]
        outputs = self._backend.infer(np.concatenate([self._preprocessor.prepare(image).copy() for image in images]))
        return [
            self._preprocessor.restore(outputs, i, (image.shape[0], image.shape[1])) for i, image in enumerate(images)
        ]

    def batch_fitted(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Proposals]:
        """As `batch`, but a model for one camera size takes frames of all sizes, letterboxed into that size."""
        source_hw = self.manifest.input.source_hw
        if source_hw is None:
            return self.batch(frames)
        images = [self._check(frame) for frame in frames]
        fits = [letterbox((image.shape[0], image.shape[1]), source_hw) for image in images]
        resize = load_cv2().resize
        found = self.batch([fit.apply(image, resize) for fit, image in zip(fits, images, strict=True)])
        return [in_frame(proposals, fit) for fit, proposals in zip(fits, found, strict=True)]

    def stream(
        self,
        source: str | int | os.PathLike[str] | Source,
        *,
        workers: int | None = None,
        max_frames: int | None = None,
        track: TrackConfig | None = None,
    ) -> Iterator[Result]:
        """Returns the results of a video, images or a camera, in order; threads decode and infer.

        Files never lose a frame. A live source gives its newest frame whenever the model is free, and is reconnected
        for ever when it fails; only the device of a camera must exist at the start. Events of the source are logged;
        for several sources, events and limits of age use `edgerpn.runtime.run`. Leaving the loop, or closing the
        generator, stops the threads and closes the source, also an opened file: open it again for another stream.
        Another thread cannot close it while it waits for a frame; `StreamRunner.stop` of `edgerpn.runtime.run` can.
        Results may be kept: pictures of a live source lie in shared memory, and become copies when few slots are left.

        Args:
            source: Anything that `edgerpn run` takes, or an opened file.
            workers: Frames of a file in the model at the same time; None: as many as make the backend faster.
            max_frames: Frames after which to stop; None: all.
            track: Gives every result its `tracks`; None: the results have none.

        Raises:
            StreamOpenError: The source cannot be opened, now or ever (raised from the iteration, as all the rest).
            InputError: A frame does not fit the model.
            InferenceError: The backend failed.
            TypeError, ValueError: An argument has a wrong type or is out of range; nothing was opened.
        """
        from edgerpn.runtime.run.logs import log_event
        from edgerpn.runtime.run.runner import StreamRunner, check_count
        from edgerpn.runtime.run.streams_config import StreamsConfig

        check_count("workers", workers, least=1)
        check_count("max_frames", max_frames, least=0)
        settings = StreamsConfig(track=track)
        config, opened = _open(source)
        is_open = False
        with StreamRunner(
            self,
            dataclasses.replace(settings, sources=(config,)),
            opened=opened,
            workers=workers,
            is_strict=True,
            max_results=max_frames,
        ) as runner:
            for item in runner:
                if isinstance(item, Result):
                    is_open = True
                    yield item
                elif item.kind == "ended" and item.reason != "end_of_stream" and not is_open:
                    raise StreamOpenError(f"{item.message}. {item.fix}" if item.fix else item.message)
                else:
                    log_event(item)

    def run_frames(self, frames: Sequence[Frame], *, pool: Executor | None = None) -> list[Result | InputError]:
        """Returns the results of frames of several sources, run together, with the time of each stage.

        Args:
            frames: At least one; their sizes may differ.
            pool: Threads that lay several frames into the network's input; None: this thread does it.

        Returns:
            A result for each frame, or the error of a frame that does not fit the model.

        Raises:
            InferenceError: The backend failed, or the threads of `pool` do not start.
            RuntimeError: `pool` was shut down.
        """
        start_s = time.monotonic()
        if len(frames) == 1:
            inputs, prepared = self._prepare_one(frames[0])
        else:
            inputs = np.empty((len(frames), *self.manifest.input.frame_shape), np.uint8)
            fill = partial(self._fill, inputs)
            try:
                filling = (pool.map if pool is not None else map)(fill, range(len(frames)), frames)
            except RuntimeError as error:
                # A pool starts its threads with its first work.
                if NO_THREADS not in str(error):
                    raise
                raise InferenceError(
                    f"the threads that prepare frames cannot be started: {error}. Raise the limit of threads, or set "
                    "batching.preprocess_threads = 1"
                ) from error
            prepared = list(filling)
        rows = [i for i, outcome in enumerate(prepared) if not isinstance(outcome, InputError)]
        if not rows:
            return [outcome for outcome in prepared if isinstance(outcome, InputError)]
        infer_start_s = time.perf_counter()
        outputs = self._backend.infer(inputs if len(rows) == len(frames) else inputs[rows])
        inference_ms = (time.perf_counter() - infer_start_s) * 1e3
        results: list[Result | InputError] = []
        for frame, outcome in zip(frames, prepared, strict=True):
            if isinstance(outcome, InputError):
                results.append(outcome)
                continue
            row = rows.index(len(results))
            stage_ms = {**_capture_stages(frame, start_s), "preprocess": outcome, "inference": inference_ms}
            results.append(self._restore_row(frame, outputs, row, stage_ms))
        return results

    def _prepare_one(self, frame: Frame) -> tuple[npt.NDArray[np.uint8], list[float | InputError]]:
        """Returns the network's input for one frame, without a copy, and the milliseconds that it took."""
        start_s = time.perf_counter()
        try:
            with span("preprocess"):
                inputs = self._preprocessor.prepare(self._check(frame.image))
        except InputError as error:
            return frame.image[:0], [_without_traceback(error)]
        return inputs, [(time.perf_counter() - start_s) * 1e3]

    def _fill(self, inputs: npt.NDArray[np.uint8], row: int, frame: Frame) -> float | InputError:
        """Copies the network's input for a frame into its row; the milliseconds that it took."""
        prepared, (outcome,) = self._prepare_one(frame)
        if not isinstance(outcome, InputError):
            start_s = time.perf_counter()
            inputs[row] = prepared[0]
            outcome += (time.perf_counter() - start_s) * 1e3
        return outcome

    def _restore_row(self, frame: Frame, outputs: Outputs, row: int, stage_ms: dict[str, float]) -> Result:
        start_s = time.perf_counter()
        with span("postprocess"):
            proposals = self._preprocessor.restore(outputs, row, frame.size_hw)
        stage_ms["postprocess"] = (time.perf_counter() - start_s) * 1e3
        return Result(proposals=proposals, frame=frame, stage_ms=stage_ms)

    def _check(self, image: object) -> npt.NDArray[np.uint8]:
        return check_image(image, takes_bgrx=self._preprocessor.takes_bgrx)

    def close(self) -> None:
        """Frees the backend; does nothing the second time."""
        self._backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _without_traceback(error: InputError) -> InputError:
    """Returns the same error, which does not keep the picture alive.

    The traceback holds the calls, and they the picture and the list that will hold the error: a cycle, in which the
    picture's slot would be lost to its camera until the garbage collector runs.
    """
    return error.with_traceback(None)


def _open(source: str | int | os.PathLike[str] | Source) -> tuple[SourceConfig, dict[str, Source]]:
    """Returns the settings of the one source of `Model.stream`, and its file, opened."""
    from edgerpn.runtime.run.streams_config import SourceConfig
    from edgerpn.runtime.sources.failures import check_device
    from edgerpn.runtime.sources.file_sources import open_source

    if not isinstance(source, (str, int, os.PathLike)):
        if not isinstance(source, Source):
            raise TypeError(
                "source: expected a text, a path, the number of a camera or an opened file, got a "
                f"{type(source).__name__}; for several sources use edgerpn.runtime.run.StreamRunner"
            )
        # The text is only shown; the name identifies the source.
        return SourceConfig(source="opened file", name=source.name), {source.name: source}
    text = str(source) if isinstance(source, int) else os.fspath(source)
    config = SourceConfig(source=text, max_age_ms=0)
    if config.spec.kind == "camera":
        check_device(config.spec)
    return config, {config.label: open_source(text, name=config.label)} if config.is_read_here else {}


def _capture_stages(frame: Frame, taken_s: float) -> dict[str, float]:
    """Stages of a frame before the model took it, milliseconds."""
    wait_ms = max(0.0, (taken_s - frame.monotonic_s) * 1e3 - frame.decode_ms)
    return {"capture_lag": frame.lag_ms or 0.0, "decode": frame.decode_ms, "wait": wait_ms}
