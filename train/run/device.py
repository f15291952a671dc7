"""The device to train on, and the precision of its forward pass."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from edgerpn.errors import ConfigError
from edgerpn.train.config import LoopConfig
from edgerpn.train.run.ranks import SINGLE_PROCESS, Ranks

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Device and precision of the network."""

    device: torch.device
    """Device of weights and batches."""
    dtype: torch.dtype
    """Precision of the forward pass; float32 means no automatic mixed precision."""

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context for the network's forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        """Returns a short text for logs: "cpu, bf16"."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{self.device}, {names[self.dtype]}"


def place(module: AnyModule, device: torch.device) -> AnyModule:
    """Moves a module to `device`, with convolutions channels-last in memory, the faster layout on CPUs and GPUs."""
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stubs
    return module


def choose_compute(config: LoopConfig, ranks: Ranks = SINGLE_PROCESS) -> Compute:
    """Resolves `device` and `amp`; with several processes on a machine each takes its own GPU.

    Raises:
        ConfigError: The device does not exist, or does not support the settings.
    """
    device = _device(config.device)
    if ranks.size > 1 and device.type == "cuda":
        device = _own_gpu(config.device, ranks)
    if config.amp == "off":
        dtype = torch.float32
    elif config.amp == "auto":
        dtype = torch.bfloat16 if _has_native_bf16(device) else torch.float32
    else:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError([f"loop.amp: fp16 needs a CUDA device, got {device}; use bf16 or off"])
    return Compute(device=device, dtype=dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            [f"loop.device: {name!r} does not exist; PyTorch sees {torch.cuda.device_count()} CUDA devices"]
        )
    return device


def _own_gpu(name: str, ranks: Ranks) -> torch.device:
    if name not in ("auto", "cuda"):
        raise ConfigError([f"loop.device: expected auto, cpu or cuda with {ranks.size} processes, got {name!r}"])
    if ranks.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            [
                f"{ranks.local_size} processes on this machine, but PyTorch sees {torch.cuda.device_count()} CUDA "
                "devices; start torchrun with as many processes as devices (--nproc-per-node)"
            ]
        )
    return torch.device("cuda", ranks.local_rank)


def _has_native_bf16(device: torch.device) -> bool:
    """Returns whether the hardware computes bf16 convolutions (emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for later tensors; returns whether that worked.

    By default glibc requests the memory of every large tensor from the kernel, which fills it with zeros, and returns
    it: on a CPU a tenth of a training step and more. Afterwards the process stays as large as its largest step. Other
    C libraries stay unchanged.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
