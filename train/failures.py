"""What ends a training from outside, out of memory and full disks, told in words that say how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgerpn.errors import TrainingStoppedError
from edgerpn.train.config import TrainSettings
from edgerpn.train.run_folder import RunFolder


def how_to_go_on(folder: RunFolder) -> str:
    """What is left of the run, and the way back into it."""
    if folder.last.exists():
        return f"{folder.last} is whole; go on with --resume"
    return "no checkpoint was written yet; start again"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the CPU's or the GPU's memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no class of its own; cuDNN and cuBLAS say it with a status.
    words = ("DefaultCPUAllocator", "CUDA out of memory", "ALLOC_FAILED", "could not create a memory object")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def out_of_memory_named(folder: RunFolder, settings: TrainSettings) -> Iterator[None]:
    """Turns an error of memory into one line.

    Raises:
        TrainingStoppedError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        data, parts = settings.data, settings.loop.accumulate
        detail = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise TrainingStoppedError(
            f"out of memory with {data.batch_size} images a step in {parts} part{'s' if parts > 1 else ''}, "
            f"{data.input_hw[0]}x{data.input_hw[1]} ({detail}). {how_to_go_on(folder)} and "
            f"--set loop.accumulate={2 * parts}, which needs about half as much and takes the same steps; "
            "or free memory, or start anew with a smaller --size or data.batch_size"
        ) from error
