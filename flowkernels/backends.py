"""Which implementation runs: the request of the user, and what is available here."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

import torch

# The numbers travel as an argument of the registered operators, so that backward, which autograd may run on another
# thread, makes the same choice as forward.
NAMES = ("auto", "reference", "cpu", "triton", "cuda")
AUTO, REFERENCE, CPU, TRITON, CUDA = range(len(NAMES))

# What `auto` tries in order, per device type.
PREFERENCE = {
    "cpu": (CPU, REFERENCE),
    "cuda": (TRITON, REFERENCE) if torch.version.hip else (CUDA, TRITON, REFERENCE),
    "xpu": (TRITON, REFERENCE),
}


class BackendError(RuntimeError):
    """A requested backend cannot run the call."""


def _number(name: str, source: str) -> int:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}; got {name!r}")
    return NAMES.index(name)


class _State:
    """The request in force. A plain attribute, for the whole process: torch.compile guards on it, and autograd's
    threads would not see a thread-local one."""

    request: int = _number(os.environ.get("FLOWKERNELS_BACKEND", "auto"), "FLOWKERNELS_BACKEND")


_state = _State()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every flowkernels operation inside the block, in every thread, on one backend.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``, or ``"auto"`` for the default choice.

    Raises:
        ValueError: for another name. A call that the backend cannot run raises `BackendError` with the reason.

    Example:
        >>> import torch, flowkernels as fk
        >>> with fk.backend("reference"):
        ...     y, log_det = fk.affine_coupling(torch.zeros(4, 2), torch.zeros(4, 4))
    """
    outer, _state.request = _state.request, _number(name, "backend")
    try:
        yield
    finally:
        _state.request = outer


def requested() -> int:
    """The number of the backend asked for, `AUTO` if none was."""
    return _state.request


@functools.cache
def _load(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(f"flowkernels.{name}")
    except ImportError as error:
        if "FLOWKERNELS_ISA" in str(error):  # a setting that cannot be met is an error, not a reason to fall back
            raise ValueError(str(error)) from None
        missing = isinstance(error, ModuleNotFoundError) and error.name == f"flowkernels.{name}"
        return "it was not built" if missing else f"it cannot be loaded: {error}"


def native_module(number: int) -> ModuleType | str:
    """The compiled module of a backend, or the reason why there is none."""
    return _load("_cpu" if number == CPU else "_cuda")


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _triton_problem() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return None


@functools.cache
def problem(number: int, device_type: str, device_index: int | None = None) -> str | None:
    """Why a backend cannot run on a device, or None if it can."""
    if number == REFERENCE:
        return None
    if number == TRITON:
        if interpreting():
            return _triton_problem() if device_type == "cpu" else "Triton's interpreter runs on CPU tensors only"
        if device_type == "cpu":
            return "it needs a GPU tensor, or TRITON_INTERPRET=1"
        return _triton_problem()
    module = native_module(number)
    if isinstance(module, str):
        return module
    if number == CPU:
        return None if device_type == "cpu" else f"it runs on CPU tensors, not {device_type}"
    if module.emulated:
        return None if device_type == "cpu" else "the emulation runs on CPU tensors only"
    reason = module.device_problem(device_index or 0)
    if reason is None and device_type != "cuda":
        reason = f"it runs on CUDA tensors, not {device_type}"
    return reason


def problems(device: torch.device) -> dict[str, str | None]:
    """For every backend the reason why it cannot run on a device, None where it can."""
    return {NAMES[n]: problem(n, device.type, device.index) for n in range(1, len(NAMES))}


def resolve(request: int, device: torch.device) -> int:
    """The backend that runs a call.

    Raises:
        BackendError: if the one asked for cannot; the message names every backend and its reason.
    """
    if torch.compiler.is_compiling():
        return _resolve_once(request, device)
    return resolve_eagerly(request, device)


@torch.compiler.assume_constant_result
def _resolve_once(request: int, device: torch.device) -> int:
    # Evaluated, not traced: whether a module can be loaded is no part of a graph. Graphs guard on the request.
    return resolve_eagerly(request, device)


@functools.lru_cache(maxsize=256)
def resolve_eagerly(request: int, device: torch.device) -> int:
    """`resolve` where torch does not compile."""
    if request != AUTO:
        if problem(request, device.type, device.index) is None:
            return request
        lines = [f"  {name}: {why or 'available'}" for name, why in problems(device).items()]
        raise BackendError(f"backend {NAMES[request]!r} was requested and cannot run on {device}:\n" + "\n".join(lines))
    for number in PREFERENCE.get(device.type, (REFERENCE,)):
        if problem(number, device.type, device.index) is None:
            return number
    return REFERENCE


def forget() -> None:
    """Look for the modules again; for tests that exchange them."""
    for cached in (_load, _triton_problem, problem, resolve_eagerly):
        cached.cache_clear()
