"""torch.compile for the training network, with a way back where it does not work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgerpn.train.network.layers import FIRST_STEPS, set_norm_momentum
from edgerpn.train.run.failures import is_out_of_memory
from edgerpn.train.run.state import Run

Network = Callable[[Tensor], list[tuple[Tensor, Tensor]]]


def compiled(network: nn.Module, run: Run, say: Callable[[str], None]) -> Network:
    """The network compiled for the run's batches; `network` itself, and a line that says why, when that fails.

    The run has one process: several could not agree on it, because what goes round between them would hang meanwhile.
    Compiling happens when a network is first used; a pass forward and backward shows here whether it works, and
    leaves weights, gradients and statistics as they were. The first steps of a run go without, because each has a
    momentum of its own for batch norms, and every momentum would be a program of its own.
    """
    say("loop.compile: compiling the network, which takes a while ...")
    fast: Network = torch.compile(network, dynamic=False)
    size = run.loader.batch_size // run.settings.loop.accumulate
    set_norm_momentum(network, FIRST_STEPS)
    before = [buffer.clone() for buffer in run.model.buffers()]
    network.train()
    try:
        # Every size of views is a program of its own.
        for view_hw in dict.fromkeys(run.settings.data.views_hw):
            _pass(fast, torch.zeros(size, 3, *view_hw, device=run.compute.device), run)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        say(f"loop.compile: not possible here, training goes on without it ({(lines or [type(error).__name__])[0]})")
        return network
    finally:
        for buffer, value in zip(run.model.buffers(), before, strict=True):
            buffer.copy_(value)
        run.optimizer.zero_grad(set_to_none=True)
    return lambda images: (fast if run.progress.step >= FIRST_STEPS else network)(images)


def _pass(network: Network, images: Tensor, run: Run) -> None:
    """Forward and backward."""
    with run.compute.autocast():
        levels = network(images.contiguous(memory_format=torch.channels_last))
    total = torch.zeros((), device=images.device)
    sum((logits.sum() + deltas.sum() for logits, deltas in levels), total).backward()
