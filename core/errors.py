"""The whole error tree.

    EdgeRpnError
      ConfigError(ValueError)           unknown or bad settings; lists every problem of one source
        UsageError                      the words of a command line are at fault, whatever its files hold
      DataError(ValueError)             annotations or images that cannot be used
      CheckpointError(ValueError)       a checkpoint that cannot be read or does not fit the model
      TrainingDivergedError             non-finite loss; keeps step, image ids and the last good checkpoint
      TrainingStoppedError              memory, disk or another process ended a training; says how to resume
      ManifestError(ValueError)         a manifest that is missing or malformed
        ManifestVersionError            its schema number is not the one that this version reads
        ArtifactMismatchError           a hash (or the machine) differs from what the manifest says
          ArtifactChangedError          an ONNX file is whole, but not the one that was exported
      ExportError                       the graph cannot be exported
        ParityError                     the exported graph and the model disagree
        RecallDropError                 a reduced precision loses more recall than allowed
      EngineError                       an inference backend
        EngineLoadError                 the model file cannot be loaded by the backend
        BuildError                      an engine cannot be built
        SelfTestError                   the golden frames did not give the expected proposals
        InferenceError                  the backend failed on a frame
          NotFiniteError                the graph gave NaN or an infinite value
      InputError(ValueError)            a frame or array of the wrong type, shape or dtype
      StreamError                       a video source or sink
        StreamOpenError                 it cannot be opened
        SinkError                       results cannot be written
      BulkError                         workers of a bulk run cannot work; says how to continue it
      MissingDependencyError(ImportError)   an optional package is needed; says which extra brings it

Every message says what was wrong, where, what came, what was expected and what to do.
The command line prints `error: MESSAGE` and exits 1, or 2 after a UsageError; mistakes in calling our Python API stay
TypeError, ValueError and RuntimeError outside this tree.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class EdgeRpnError(Exception):
    """Base of every error that EdgeRPN raises on purpose."""

    def __reduce__(self) -> tuple[Callable[..., EdgeRpnError], tuple[Any, ...]]:
        """Lets `pickle` and `copy` keep the message and the attributes of every error.

        By default they would call the class with the message alone, which some classes do not take: a
        `multiprocessing.Pool` whose worker raises such an error waits for ever.
        """
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigError(EdgeRpnError, ValueError):
    """One or more settings are unknown or out of range; `problems` holds one line for each."""

    def __init__(self, problems: Sequence[str], *, source: str = "") -> None:
        """Joins `problems` (at least one) into one message that names `source` when given."""
        self.problems = tuple(problems)
        self.source = source
        where = f"{source}: " if source else ""
        super().__init__("\n".join(f"{where}{problem}" for problem in self.problems))


class UsageError(ConfigError):
    """Arguments of a command line, or overrides of settings, are missing, exclude each other or are out of range."""


class DataError(EdgeRpnError, ValueError):
    """Annotations or images that cannot be used; `problems` holds one line for each."""

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        """Adds each of `problems` on a line of its own below `message`."""
        self.problems = tuple(problems)
        super().__init__("\n  ".join((message, *self.problems)))


class CheckpointError(EdgeRpnError, ValueError):
    """A checkpoint that cannot be read, or whose weights do not fit the model."""


class TrainingDivergedError(EdgeRpnError):
    """The loss is not finite.

    Attributes:
        step: Optimizer step at which it happened, from 0.
        image_ids: COCO ids of the images in that batch.
        last_good: Path of the last checkpoint written before, or None.
    """

    def __init__(self, message: str, *, step: int, image_ids: Sequence[int | str], last_good: str | None) -> None:
        """Keeps the figures beside the message."""
        self.step = step
        self.image_ids = tuple(image_ids)
        self.last_good = last_good
        super().__init__(message)


class TrainingStoppedError(EdgeRpnError):
    """A lack of memory, a full disk or the end of another process ended a training; the message says how to resume."""


class ManifestError(EdgeRpnError, ValueError):
    """A manifest that is missing, malformed or incomplete."""


class ManifestVersionError(ManifestError):
    """The manifest's schema number is not the one that this version reads."""


class ArtifactMismatchError(ManifestError):
    """A file's hash, or the machine, differs from what its manifest says."""


class ArtifactChangedError(ArtifactMismatchError):
    """An ONNX file is whole, but another one than its manifest describes: a program has changed it since export."""


class ExportError(EdgeRpnError):
    """The graph cannot be exported as asked."""


class ParityError(ExportError):
    """The exported graph and the model it came from disagree."""


class RecallDropError(ExportError):
    """A reduced precision loses more recall than allowed."""


class EngineError(EdgeRpnError):
    """An inference backend failed."""


class EngineLoadError(EngineError):
    """The model file cannot be loaded by the backend."""


class BuildError(EngineError):
    """An engine cannot be built."""


class SelfTestError(EngineError):
    """The golden frames of an artifact did not give the expected proposals."""


class InferenceError(EngineError):
    """The backend failed while running a frame."""


class NotFiniteError(InferenceError):
    """A graph gave NaN or an infinite value."""


class InputError(EdgeRpnError, ValueError):
    """A frame or array has the wrong type, shape or dtype."""


class StreamError(EdgeRpnError):
    """A video source or a sink of results failed."""


class StreamOpenError(StreamError):
    """A source cannot be opened."""


class SinkError(StreamError):
    """Results cannot be written."""


class BulkError(EdgeRpnError):
    """Workers of a bulk run cannot work, or died; the message says how to continue."""


class MissingDependencyError(EdgeRpnError, ImportError):
    """An optional package is not installed."""


def _rebuild(kind: type[EdgeRpnError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> EdgeRpnError:
    """Makes an error again without the arguments of its class."""
    error = kind.__new__(kind)
    # The next class is a built-in one, and ImportError has a message of its own.
    super(EdgeRpnError, error).__init__(*arguments)
    error.__dict__.update(attributes)
    return error


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports an optional module, or says which extra brings it.

    Args:
        module: Dotted name to import.
        extra: The extra of this package that installs it.
        purpose: The task that needs it, as the start of a sentence ("reading video").

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The module is not installed, or fails to import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = numpy_remedy(error) or f"Install it with: pip install 'edgerpn[{extra}]'"
        raise MissingDependencyError(
            f"{purpose} needs the Python module {module!r}, which does not import here ({error}). {remedy}"
        ) from error


def numpy_remedy(error: BaseException | None) -> str:
    """Returns what to do when a module that is compiled for NumPy 1 met NumPy 2; "" when that is not the error."""
    if "multiarray failed to import" not in str(error):
        return ""
    return (
        "It is compiled for NumPy 1, as the system's OpenCV of a Jetson is, and NumPy 2 is installed: pip install "
        "'numpy<2' (the extras jetson6 and jetson7 bring it)"
    )


def check_setting(is_good: bool, name: str, expected: str, value: object) -> None:
    """Refuses the value of a setting unless `is_good`; `settings` adds the path of the setting.

    Raises:
        ValueError: Names the setting, the expected and the actual value.
    """
    if not is_good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
