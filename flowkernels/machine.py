"""Facts about this machine and this build that a figure depends on."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from types import ModuleType

import torch

from . import backends
from .version import __version__


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    return {
        "flowkernels": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} ({_toolkit()})",
        "triton": _installed("triton"),
        "system": platform.platform(),
    }


def _toolkit() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> dict[str, str]:
    """The processor and what of it is used."""
    return {
        "model": processor_name(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "flowkernels uses": isa() or "no CPU module",
    }


def processor_name() -> str:
    """The model, as the system names it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def isa() -> str | None:
    """The instruction set that the CPU kernels run in."""
    module = backends.native_module(backends.CPU)
    return module.isa if isinstance(module, ModuleType) else None


def compiler() -> str | None:
    """The compiler of the CPU kernels."""
    module = backends.native_module(backends.CPU)
    return module.compiler if isinstance(module, ModuleType) else None


def accelerator(device: torch.device) -> str | None:
    """The name of a GPU."""
    return None if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
