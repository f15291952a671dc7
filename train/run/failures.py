"""What ends a training from outside, out of memory and full disks, told in words that say how to go on."""

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
    """What is left of the run, and the way back into it."""
    if folder.whole is not None:
        return f"{folder.whole} is whole; go on with --resume"
    if folder.last.exists():  # of the first process, or of another run
        return f"{folder.last} was not read here; if it is this run's, go on with --resume"
    place = " in another folder" if folder.best.exists() else ""
    return f"no {folder.last.name} was written yet; start again{place}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the CPU's or the GPU's memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no class of its own; cuDNN and cuBLAS say it with a status.
    words = ("DefaultCPUAllocator", "CUDA out of memory", "ALLOC_FAILED", "could not create a memory object")
    text = str(error)
    # oneDNN when it finds no room for its code; what it cannot compute at all it calls a primitive descriptor.
    is_no_code = text == "could not create a primitive"
    return isinstance(error, RuntimeError) and (is_no_code or any(word in text for word in words))


@contextmanager
def explain_out_of_memory(describe: Callable[[], str]) -> Iterator[None]:
    """Turns an error of memory into one line: `describe` gives what ran out of memory, and the way on.

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
    """What to do when memory ends before the first step, where no smaller batch helps."""
    return (
        f"before the first step, {_size(settings)}: free memory, or choose fewer data.workers, a smaller network or "
        f"--size; {how_to_resume(folder)}"
    )


def advice_during_step(run: TrainingRun) -> str:
    """What to do when memory ends in a step."""
    settings, passes = run.settings, run.settings.loop.accumulate
    more = next_larger_accumulate(settings.data.batch_size, run.loader.batch_size, run.ranks.size, passes)
    if more is None:
        advice = "when memory is free, or start anew with a smaller --size"
    else:
        advice = (
            f"and --set loop.accumulate={more}, which needs about {passes / more:.0%} of it and takes the same steps; "
            "or free memory, or start anew with a smaller --size or data.batch_size"
        )
    return (
        f"with {run.loader.batch_size} images a step in {passes} part{'s' if passes > 1 else ''}, "
        f"{_size(settings)}. {how_to_resume(run.folder)} {advice}"
    )


def next_larger_accumulate(batch_size: int, images_per_step: int, num_ranks: int, passes: int) -> int | None:
    """The next larger loop.accumulate with which a run can go on, taking the same steps; None when there is none.

    Args:
        batch_size: As the settings have it.
        images_per_step: What the data set gives of it.
        num_ranks: Number of processes.
        passes: loop.accumulate as it is.
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
