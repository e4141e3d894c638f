"""Launching Triton kernels, on the tensors' device and without asking Triton anew for what was compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from .. import backends


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(n: int, d: int) -> int:
    """n / d, rounded up."""
    return -(-n // d)


def _target() -> str:
    return triton.runtime.driver.active.get_current_target().backend


class Kernel:
    """A kernel with all its arguments but the tensors.

    Triton finds the compiled kernel anew at every launch, which takes several times as long as the launch; for tensors
    that are all aligned it is remembered here, one per device.

    NVIDIA's assembler likes to spill a few registers for the sake of one more block per multiprocessor. A kernel with
    `no_spills`, of which there are few blocks anyway, gets all that its threads can have.
    """

    def __init__(self, kernel: Any, programs: int, arguments: tuple, warps: int, no_spills: bool = False) -> None:
        self.kernel, self.arguments, self.warps, self.no_spills = kernel, arguments, warps, no_spills
        self.grid = (programs, 1, 1)
        self.compiled: dict[int | None, Any] = {}

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        if not self.grid[0]:
            return
        aligned = not any(t is not None and t.data_ptr() % 16 for t in tensors)
        if aligned and (compiled := self.compiled.get(device.index)) is not None:
            compiled[self.grid](*tensors, *self.arguments)
            return
        compiled = self.run(*tensors)
        if aligned:
            self.compiled[device.index] = compiled

    def run(self, *tensors: Tensor | None, warmup: bool = False) -> Any:
        """Compile if need be and launch, or with `warmup` compile only; returns what was compiled, if anything was."""
        # Contraction to FMA is on by default up to Triton 3.9 and off after it.
        options = {"num_warps": self.warps, "enable_fp_fusion": True}
        if self.no_spills and not backends.interpreting() and _target() == "cuda":
            options["maxnreg"] = min(255, 65536 // (32 * self.warps))
        return self.kernel.run(*tensors, *self.arguments, grid=self.grid, warmup=warmup, **options)


def launch(plan: Callable[..., None], device: torch.device, *tensors: Tensor | None) -> None:
    """Run a plan, which launches kernels, with its device current, as Triton launches on that."""
    with _current(device):
        plan(device, *tensors)


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    if device.type == "cpu":
        return contextlib.nullcontext()
    module = torch.get_device_module(device)
    return contextlib.nullcontext() if module.current_device() == device.index else module.device(device)
