"""The processes of one training: this one alone, or those that torchrun started.

Rank 0 is the first process. It reads and checks the data, writes the run folder and speaks; the others get from it
what they need, so that only its machine must see the files of the run. Everything that decides where a step or an
evaluation happens is agreed upon, because clocks and signals differ from process to process.
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
"""What torchrun calls a run to which no name was given."""

TIMEOUT = timedelta(minutes=60)
"""How long a process waits for the others: as long as checking a large data set may take the first one."""


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
    """torchrun's name of the run, "none" when it was given none; None when torchrun did not start this process."""
    run_key: str | None = None
    """What tells torchrun's run from others: its name or, without one, the torchrun process; None: not known."""
    restarts: int = 0
    """How often torchrun has started the processes again."""

    @property
    def is_named(self) -> bool:
        """Whether torchrun has a name for the run."""
        return self.run_id not in (None, _UNNAMED)

    @property
    def is_first(self) -> bool:
        """Whether this process reads, writes and speaks for all."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Joins the other processes, which must be doing the same: by gloo on CPUs, and NCCL for tensors on GPUs."""
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _explain_lost_processes(self):
            # Others may never come, and nothing is to be saved yet: SIGTERM ends this process at once.
            with sigterm_handler(signal.SIG_DFL):
                distributed.init_process_group(
                    backend, store=self._rendezvous_store(), rank=self.rank, world_size=self.size, timeout=TIMEOUT
                )
            yield
            # After an error the others may never come here; the process ends soon, and its connections with it.
            distributed.destroy_process_group()

    def _rendezvous_store(self) -> Any:
        """Where the processes find each other.

        torchrun keeps one store over its restarts, where processes would find the addresses of those that are gone
        (seen with PyTorch 2.13, pytorch/pytorch issue 135712). On one machine the number of restarts tells the
        generations apart; over several machines it differs from one to the next.
        """
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        if self.local_size < self.size:
            return store
        return distributed.PrefixStore(f"edgerpn/{self.restarts}", store)  # type: ignore[attr-defined] # it is public

    def compute_on_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives in the first process, in every process.

        Raises:
            TrainingStoppedError: It failed there; the first process raises its own error.
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
            raise TrainingStoppedError(f"process {self.rank} stops because the first one did; its message says why")
        return value

    def gather_to_first(self, value: Value) -> list[Value]:
        """The values of all processes by rank, in the first one; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        distributed.gather_object(value, values)
        return values or []

    def agree(self, seconds: float, is_stopped: bool) -> tuple[float, bool]:
        """The first process's `seconds`, and whether any process is stopped."""
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
        """Gives `tensors` the first process's values, in place; returns the largest difference that any had.

        Every process calls it, with tensors of the same shapes in the same order.
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
        """The least of the processes' values."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared)


SINGLE_PROCESS = Ranks()
"""A training of one process."""


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place, from the variables that torchrun (or another launcher) sets.

    Raises:
        ConfigError: Some of them are missing or no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Ranks()
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            [
                f"environment: RANK and WORLD_SIZE are set, as torchrun does, but of {', '.join(names)} one is missing "
                f"or no number ({error}); start with `torchrun -m edgerpn train ...`, or unset them"
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
    """What no other process shares with the one that started this one; None where there is no /proc."""
    parent = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name, in brackets, may hold anything; the 22nd field is the time of the start.
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{boot}/{parent}/{started}"


@contextmanager
def _explain_lost_processes(ranks: Ranks) -> Iterator[None]:
    """Turns what the process group raises when another process has gone into one line."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise TrainingStoppedError(
            f"process {ranks.rank} of {ranks.size} stops because another one ended or cannot be reached "
            f"({str(error).splitlines()[0][:200]}); look for the first message of the others. "
            "torchrun with --max-restarts goes on from the last checkpoint by itself; otherwise use --resume"
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    # Collectives raise classes of torch.distributed; what passes through autograd comes as a plain RuntimeError.
    words = ("gloo", "NCCL", "onnection closed by peer", "onnection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
