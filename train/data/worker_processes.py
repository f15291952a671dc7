"""The processes that read images: how they start, what they leave alone, and how they end.

They come from a fork server. Forking the training process itself would copy locks held by its threads (OpenMP,
CUDA, pinning; Python >= 3.12 warns of it), and spawning would import torch anew for each worker; the server has one
thread and imports torch once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from typing import Any

import cv2
import torch


def context(preload: str) -> Any:
    """The multiprocessing context for workers: a fork server that imports `preload` once, or else spawning."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([preload])
    # It and its children take over which signals are blocked. Whoever ends a service or a SLURM job sends SIGTERM to
    # every process; the training process alone must answer, for it cannot finish its step without its data.
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


def start_worker(worker: int) -> None:
    """Makes worker number `worker` use one core, leave signals to the training process, and not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name=f"watch-{worker}", daemon=True).start()


def is_death(error: Exception) -> bool:
    """Whether what a DataLoader raised means that a worker died; what a worker itself raised does not."""
    # The DataLoader has no class of its own for it; what a worker raises comes as "Caught ... in DataLoader worker".
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    # A batch's memory is handed over by the worker; one that is just dying resets that connection.
    return isinstance(error, (OSError, EOFError)) and not str(error).startswith("Caught ")


def _end_with_parent() -> None:
    """Ends this process when the training process is gone, even if it was killed.

    The DataLoader's own watch looks at the fork server instead, which lives as long as the workers do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
