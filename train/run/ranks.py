"""The processes of one training: this one alone, or those that torchrun started.

Rank 0 is the first process. It reads and checks the data, writes the run folder and prints; the others receive the
results, so only its machine needs access to the files of the run. The processes agree on everything that decides when
a step or an evaluation happens, because their clocks and signals differ.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from edgerpn.errors import ConfigError, TrainingStoppedError
from edgerpn.machine import sigterm_handler

Value = TypeVar("Value")
_UNNAMED = "none"
"""The name that torchrun uses for a run without a name."""

TIMEOUT = timedelta(minutes=60)
"""How long a process waits for the others: the first one may need that long to check a large data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those of the training; the default is a process on its own."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine, from 0; the GPU that it takes."""
    local_size: int = 1
    """Number of processes on this machine."""
    run_id: str | None = None
    """torchrun's name of the run ("none" without a name); None if torchrun did not start this process."""
    run_key: str | None = None
    """Identifies the run: its name, or else the torchrun process; None: unknown."""
    restarts: int = 0
    """Number of times that torchrun has restarted the processes."""

    @property
    def is_named(self) -> bool:
        """Whether the torchrun job has a name."""
        return self.run_id not in (None, _UNNAMED)

    @property
    def is_first(self) -> bool:
        """Whether this process reads, writes and prints for all."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Joins the process group: gloo on CPUs, NCCL for tensors on GPUs; all processes must call it."""
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _explain_lost_processes(self):
            # The others may never arrive, and there is nothing to save yet: SIGTERM ends this process at once.
            with sigterm_handler(signal.SIG_DFL):
                distributed.init_process_group(
                    backend, store=self._rendezvous_store(), rank=self.rank, world_size=self.size, timeout=TIMEOUT
                )
            yield
            # Not after an error: the others may never get here, and the end of the process closes its connections.
            distributed.destroy_process_group()

    def _rendezvous_store(self) -> Any:
        """Returns the store through which the processes find each other.

        torchrun keeps one store over its restarts, so processes would find addresses of processes that have ended
        (seen with PyTorch 2.13, pytorch/pytorch issue 135712). On one machine the number of restarts distinguishes the
        generations; over several machines that number differs between them.
        """
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        if self.local_size < self.size:
            return store
        return distributed.PrefixStore(f"edgerpn/{self.restarts}", store)  # type: ignore[attr-defined] # it is public

    def compute_on_first(self, make: Callable[[], Value]) -> Value:
        """Calls `make` in the first process and returns its result in every process.

        Raises:
            TrainingStoppedError: `make` failed; the first process raises its own error.
        """
        if self.size == 1:
            return make()
        message: list[Any] = [None, False]
        try:
            if self.is_first:
                message = [make(), True]
        finally:
            distributed.broadcast_object_list(message)
        value, is_good = message
        if not is_good:
            raise TrainingStoppedError(
                f"process {self.rank} stops because the first one did; see the message of that process"
            )
        return value

    def gather_to_first(self, value: Value) -> list[Value]:
        """Returns the values of all processes by rank in the first process, and an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        distributed.gather_object(value, values)
        return values or []

    def agree(self, seconds: float, is_stopped: bool) -> tuple[float, bool]:
        """Returns the first process's `seconds`, and whether any process has to stop."""
        if self.size == 1:
            return seconds, is_stopped
        shared = torch.tensor([seconds if self.is_first else 0.0, float(is_stopped)], dtype=torch.float64)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return float(shared[0]), bool(shared[1])

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Replaces `tensor` by its sum over the processes."""
        if self.size > 1:
            distributed.all_reduce(tensor)

    def broadcast_from_first(self, tensors: Iterable[Tensor]) -> float:
        """Copies the first process's values into `tensors`; returns the largest difference that any process had.

        Every process must call it, with tensors of the same shapes in the same order.
        """
        if self.size == 1:
            return 0.0
        difference = torch.zeros((), dtype=torch.float64)
        for tensor in tensors:
            first = tensor.detach().clone(memory_format=torch.contiguous_format)
            distributed.broadcast(first, 0)
            difference = difference.maximum((first - tensor.detach()).abs().max().double().cpu())
            tensor.detach().copy_(first)
        distributed.all_reduce(difference, distributed.ReduceOp.MAX)
        return float(difference)

    def minimum(self, value: int) -> int:
        """Returns the minimum over the processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared)


SINGLE_PROCESS = Ranks()
"""A training of one process."""


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Reads this process's place from the variables that torchrun (or another launcher) sets.

    Raises:
        ConfigError: Some of them are missing or are not numbers.
    """
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Ranks()
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if size > 1:
            names += ["MASTER_ADDR", "MASTER_PORT"]
            _ = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            [
                f"environment: RANK and WORLD_SIZE are set, as torchrun does, but one of {', '.join(names)} is missing "
                f"or not a number ({error}); start with `torchrun -m edgerpn train ...`, or unset them"
            ]
        ) from error
    run_id = environment.get("TORCHELASTIC_RUN_ID")
    return Ranks(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        run_id=run_id,
        run_key=_torchrun_key() if run_id == _UNNAMED else run_id,
        restarts=restarts,
    )


def _torchrun_key() -> str | None:
    """Returns a key that is unique to the parent process; None on systems without /proc."""
    parent = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The process name in brackets may contain anything; field 22 is the start time.
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{boot}/{parent}/{started}"


@contextmanager
def _explain_lost_processes(ranks: Ranks) -> Iterator[None]:
    """Converts the errors that the process group raises after the loss of a process to one line."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise TrainingStoppedError(
            f"process {ranks.rank} of {ranks.size} stops because another one ended or is unreachable "
            f"({str(error).splitlines()[0][:200]}); see the first message of the others. "
            "torchrun with --max-restarts resumes from the last checkpoint automatically; otherwise use --resume"
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    # Collectives raise classes of torch.distributed; through autograd they arrive as a plain RuntimeError.
    words = ("gloo", "NCCL", "onnection closed by peer", "onnection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
