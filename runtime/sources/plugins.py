"""Sources that other packages add; each runs in its capture process, where it may hang or crash without harm.

A package registers its class, or a factory function, as an entry point; the name is the scheme of the URLs:

    [project.entry-points."edgerpn.sources"]
    gige = "gigecam:GigeSource"

    class GigeSource(FrameSource):
        def __init__(self, config: CaptureConfig):
            self._camera = gigesdk.open(urlsplit(config.source).hostname)

        def read(self):
            picture = self._camera.next_frame()
            self.media_time_s = picture.timestamp_ns / 1e9
            return picture.bgr

`edgerpn run model.onnx gige://192.168.1.9` then starts a process for it, kills it after `stall_s` without a frame, and
restarts it, as for any other camera.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from edgerpn.errors import MissingDependencyError
from edgerpn.runtime.frame import Reason
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.readers import Image, plausible_rate
from edgerpn.runtime.sources.spec import find_plugin

# The first match counts, because some of these derive from OSError.
_REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (ConnectionRefusedError, "refused"),
    (TimeoutError, "timeout"),
    (PermissionError, "permission"),
    (FileNotFoundError, "not_found"),
    (EOFError, "end_of_stream"),
)


class FrameSource:
    """Base class of a plugin's source; one thread of a dedicated process creates and uses it.

    The constructor opens the source. It and `read` may block within the limits of the settings (`longest_open_s` until
    the first frame, then `longest_stall_s`). They raise `CaptureFailedError` with the reason when they have no frames;
    ConnectionRefusedError, TimeoutError, PermissionError, FileNotFoundError and EOFError become the matching reasons;
    any other error is reported as it is. The supervisor reconnects after each of them, unless `is_final`.
    """

    is_live: bool = True
    """Whether the source continues while the run does not read it; the newest frame then wins, its end is an error."""
    fps: float = 0.0
    """Frames per second as stated; 0: unknown."""
    num_frames: int = 0
    """Frames of a recording; 0: unknown or endless."""
    media_time_s: float | None = None
    """Time of the last frame by the clock of the camera or recording, seconds; None: unknown. The lag of a live source
    is computed from it."""

    def __init__(self, config: CaptureConfig) -> None:
        """Opens the source.

        Args:
            config: `source` is the whole URL, whose query may hold the plugin's own options; `size_wh`, `rate_hz` and
                `pixel_format` are requests.
        """

    def read(self) -> Image | None:
        """Waits for the next frame.

        Returns:
            (H, W, 3) uint8 BGR, (H, W) uint8 grey, or (H, W, 4) uint8 BGRx where the settings have channels = "bgrx";
            the caller copies it before the next call. None: the end.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes the source; not called when the process is killed."""


# Any: a plugin's return value is checked.
Factory = Callable[[CaptureConfig], Any]


class PluginReader:
    """Frames of a plugin's source; see `Reader`."""

    camera_hw: tuple[int, int] | None = None

    def __init__(self, config: CaptureConfig, entry: EntryPoint, factory: Factory) -> None:
        """Opens the source.

        Raises:
            CaptureFailedError: The source does not open.
        """
        self._what = entry.value
        self._num_channels = (3, 4) if config.channels == "bgrx" else (3,)
        with _translated_errors(self._what):
            self._source = factory(config)
        if not isinstance(self._source, FrameSource):
            found = type(self._source).__name__
            message = f"{self._what}: expected a FrameSource of edgerpn.runtime.sources, got a {found}"
            raise CaptureFailedError(message, reason="unsupported", is_final=True)
        self.is_live = bool(self._source.is_live)
        self.fps = plausible_rate(float(self._source.fps))
        self.num_frames = int(self._source.num_frames)
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "another package"
        self.decoder = f"{self._what} of {package}, for {entry.name}:// URLs"
        self._image: Image | None = None

    def grab(self) -> bool:
        with _translated_errors(self._what):
            self._image = self._source.read()
        return self._image is not None

    def retrieve(self, into: Image | None) -> Image | None:
        # A plugin may return anything, whatever its types promise.
        image: Any = self._image
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
        if not is_array or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in self._num_channels)):
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            shapes = "".join(f"(H, W, {number}) or " for number in self._num_channels)
            message = f"{self._what}: expected frames of uint8 {shapes}(H, W), got {found}"
            raise CaptureFailedError(message, reason="codec", is_final=True)
        return image if image.ndim == 3 else np.broadcast_to(image[:, :, None], (*image.shape, 3))

    def media_time_s(self) -> float | None:
        time_s = self._source.media_time_s
        return None if time_s is None or not math.isfinite(time_s) else float(time_s)

    def close(self) -> None:
        # The process ends next, whatever the plugin raises.
        with suppress(Exception):
            self._source.close()


def load_plugin(config: CaptureConfig) -> tuple[EntryPoint, Factory]:
    """Imports the plugin of a source.

    Raises:
        CaptureFailedError: The plugin does not import.
    """
    scheme = config.spec.scheme
    entry = find_plugin(scheme)
    if entry is None:
        raise CaptureFailedError(f"no installed package reads {scheme}:// URLs", reason="unsupported", is_final=True)
    try:
        factory = entry.load()
    except Exception as error:
        message = f"{entry.value} of another package does not import: {_describe(error)}"
        raise CaptureFailedError(message, reason="dependency", is_final=True) from error
    if not callable(factory):
        message = f"{entry.value}: expected a class or a function, got a {type(factory).__name__}"
        raise CaptureFailedError(message, reason="unsupported", is_final=True)
    return entry, factory


@contextmanager
def _translated_errors(what: str) -> Iterator[None]:
    """Turns any error of a plugin into one with a reason."""
    try:
        yield
    except CaptureFailedError:
        raise
    except (ImportError, MissingDependencyError) as error:
        raise CaptureFailedError(f"{what}: {_describe(error)}", reason="dependency", is_final=True) from error
    except Exception as error:
        reason: Reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "unknown")
        raise CaptureFailedError(f"{what}: {_describe(error)}", reason=reason) from error


def _describe(error: BaseException) -> str:
    """Returns class, text and place of an error in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
