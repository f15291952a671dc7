"""Explanations of errors that end a training from outside, such as no memory, with advice on how to resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgerpn.errors import TrainingStoppedError
from edgerpn.train.config import TrainSettings
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.state import TrainingRun


def how_to_resume(folder: RunFolder) -> str:
    """Names the newest intact checkpoint and says how to resume from it."""
    if folder.newest_intact is not None:
        return f"{folder.newest_intact} is intact; continue with --resume"
    if folder.last.exists():
        # Of the first process, or of another run.
        return f"{folder.last} was not read by this process; if it belongs to this run, continue with --resume"
    place = " in another folder" if folder.best.exists() else ""
    return f"no {folder.last.name} was written yet; start again{place}"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that the CPU or GPU has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator raises no class of its own; cuDNN and cuBLAS report a status.
    words = ("DefaultCPUAllocator", "CUDA out of memory", "ALLOC_FAILED", "could not create a memory object")
    text = str(error)
    # oneDNN without room for its code; its message for unsupported operations names a primitive descriptor.
    is_no_code = text == "could not create a primitive"
    return isinstance(error, RuntimeError) and (is_no_code or any(word in text for word in words))


@contextmanager
def explain_out_of_memory(describe: Callable[[], str]) -> Iterator[None]:
    """Converts an out-of-memory error to one line; `describe` returns the circumstances and the advice.

    Raises:
        TrainingStoppedError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        detail = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise TrainingStoppedError(f"out of memory {describe()} ({detail})") from error


def advice_before_first_step(folder: RunFolder, settings: TrainSettings) -> str:
    """Advice for a lack of memory before the first step, where a smaller batch does not help."""
    return (
        f"before the first step, {_size(settings)}: free memory, choose fewer data.workers, or start a new run with a "
        f"smaller network or --size; {how_to_resume(folder)}"
    )


def advice_during_step(run: TrainingRun) -> str:
    """Advice for a lack of memory in a step."""
    settings, passes = run.settings, run.settings.loop.accumulate
    more = next_larger_accumulate(settings.data.batch_size, run.loader.batch_size, run.ranks.size, passes)
    if more is None:
        advice = "when memory is free, or start a new run with a smaller --size"
    else:
        advice = (
            f"and --set loop.accumulate={more}, which needs about {passes / more:.0%} of it and takes the same steps; "
            "or free memory, or start a new run with a smaller --size or data.batch_size"
        )
    return (
        f"with {run.loader.batch_size} images a step in {passes} part{'s' if passes > 1 else ''}, "
        f"{_size(settings)}. {how_to_resume(run.folder)} {advice}"
    )


def next_larger_accumulate(batch_size: int, images_per_step: int, num_ranks: int, passes: int) -> int | None:
    """Returns the next larger loop.accumulate with which a run can continue with the same steps, or None.

    Args:
        batch_size: The setting.
        images_per_step: Images of a step; fewer than `batch_size` in a small data set.
        num_ranks: Number of processes.
        passes: The present loop.accumulate.
    """
    for more in range(passes + 1, images_per_step // num_ranks + 1):
        if batch_size % (num_ranks * more) == 0 and images_per_step % (num_ranks * more) == 0:
            return more
    return None


def _size(settings: TrainSettings) -> str:
    return (
        "up to {}x{}".format(*max(settings.data.views_hw, key=math.prod))
        if len(set(settings.data.views_hw)) > 1
        else "{}x{}".format(*settings.data.views_hw[0])
    )
