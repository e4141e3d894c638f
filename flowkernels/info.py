"""``flowkernels info``: what is installed, what was built, and which backends run here."""

from __future__ import annotations

import argparse
import os
from types import ModuleType
from typing import Any

import torch

from . import backends, machine

# Every variable that changes what the package does, and when it is read.
VARIABLES = {
    "FLOWKERNELS_BACKEND": "the backend asked for",
    "FLOWKERNELS_ISA": "the best instruction set that the CPU kernels may use",
    "FLOWKERNELS_HUGE_PAGES": "0: no huge pages under large results",
    "FLOWKERNELS_CPU": "when building: auto or off",
    "FLOWKERNELS_CUDA": "when building: auto, on or off",
    "FLOWKERNELS_CUDA_ARCHS": "when building: the GPU architectures",
    "TRITON_INTERPRET": "Triton's own: 1 runs its kernels on CPU tensors, slowly",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``flowkernels info`` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print everything; always succeeds."""
    for title, lines in sections().items():
        print(title)
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"  {name:{width}}  {value}")
    return 0


def sections() -> dict[str, dict[str, str]]:
    """What `run` prints."""
    return {
        "versions": machine.versions(),
        "processor": machine.processor(),
        "built": _built(),
        **{f"backends for {device.type} tensors": _backends(device) for device in _devices()},
        "environment": {name: os.environ.get(name) or f"not set ({what})" for name, what in VARIABLES.items()},
    }


def _built() -> dict[str, str]:
    cpu, cuda = backends.native_module(backends.CPU), backends.native_module(backends.CUDA)
    lines = {"cpu module": f"none: {cpu}", "cuda module": f"none: {cuda}"}
    if isinstance(cpu, ModuleType):
        lines["cpu module"] = f"{', '.join(cpu.isas)}; compiled by {cpu.compiler}"
    if isinstance(cuda, ModuleType):
        how = "emulated on the CPU" if cuda.emulated else f"compiled by {getattr(cuda, 'compiler', 'nvcc')}"
        lines["cuda module"] = f"{_words(getattr(cuda, 'architectures', 'architectures unknown'))}; {how}"
    return lines


def _words(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _devices() -> list[torch.device]:
    """A CPU, and one of each kind of accelerator that torch sees."""
    found = [torch.device("cpu")]
    if torch.accelerator.is_available():
        found.append(torch.device(torch.accelerator.current_accelerator().type, 0))
    return found


def _backends(device: torch.device) -> dict[str, str]:
    lines = {name: f"no: {why}" if why else "yes" for name, why in backends.problems(device).items()}
    try:
        chosen = backends.NAMES[backends.resolve(backends.requested(), device)]
    except (ValueError, backends.BackendError) as error:
        return lines | {"runs": f"nothing: {str(error).splitlines()[0]}"}
    return lines | {"runs": chosen}
