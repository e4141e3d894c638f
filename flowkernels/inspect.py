"""Which backend would run a call, and making everything ready before it matters."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from . import backends, functional
from ._compat import inside_transform


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found; printing it says the same.

    Args:
        operation: the operation's name.
        device: where the tensors are.
        backend: the name of the backend that would run the call, None if it would raise `BackendError`.
        why: why this backend.
        others: for every other backend, why not.
    """

    operation: str
    device: torch.device
    backend: str | None
    why: str
    others: Mapping[str, str]

    def __str__(self) -> str:
        first = f"{self.operation} on {self.device}: {self.backend or 'BackendError'} ({self.why})"
        return "\n".join([first, *(f"  not {name}: {reason}" for name, reason in self.others.items())])

    __repr__ = __str__


def explain(operation: Callable[..., Any], *arguments: Any, **options: Any) -> Explanation:
    """Which backend would run ``operation(*arguments, **options)`` here and now, and why not the others.

    Nothing is computed; the arguments are checked as the call would check them.

    Raises:
        TypeError: if `operation` is not an operation of flowkernels, or no argument is a tensor.
        ValueError, TypeError: as the call would.

    Example:
        >>> import torch, flowkernels as fk
        >>> with fk.backend("reference"):
        ...     found = fk.explain(fk.affine_coupling, torch.zeros(4, 2), torch.zeros(4, 4))
        >>> found.backend, found.why
        ('reference', 'it was requested')
    """
    if getattr(operation, "__module__", None) != functional.__name__:
        raise TypeError(f"operation must be a function of flowkernels, such as fk.affine_coupling; got {operation!r}")
    tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(f"{operation.__name__} was given no tensor")
    device = tensors[0].device
    request = backends.requested()
    problems = backends.problems(device)
    name = backends.NAMES[request]
    if request != backends.AUTO and problems[name] is not None:
        others = {n: why or "it was not requested" for n, why in problems.items()}
        return Explanation(operation.__name__, device, None, f"{name} was requested and cannot run", others)
    _call_without_computing(operation, arguments, options)
    if inside_transform():
        chosen, why = "reference", "under functorch transforms and forward-mode derivatives the formula itself runs"
        otherwise = "a transform is active"
    else:
        chosen = backends.NAMES[backends.resolve(request, device)]
        why, otherwise = "it was requested", "it was not requested"
        if request == backends.AUTO:
            why, otherwise = "the first that can run", f"{chosen} comes first"
    others = {n: problem or otherwise for n, problem in problems.items() if n != chosen}
    return Explanation(operation.__name__, device, chosen, why, others)


def _call_without_computing(operation: Callable[..., Any], arguments: tuple, options: dict) -> None:
    # All backends have the same checks, and those of the reference run outside the mode, which would log an error.
    with FakeTensorMode() as mode, torch.no_grad(), backends.backend("reference"):
        arguments, options = tree_map_only(Tensor, mode.from_tensor, (arguments, options))
        operation(*arguments, **options)


def warmup(model: nn.Module, example: Any) -> None:
    """Run a model forward and backward once, so that everything it will use is compiled and loaded.

    Call it before capturing a CUDA graph and before timing. Nothing that can be seen is changed: gradients,
    parameters, buffers, attributes of the modules and torch's random state are as they were. Kernels are specialised
    for dtypes, memory layouts and sizes, so the example should be like the real input, and require a gradient if that
    does; the model should be in the mode, training or not, in which it will run. It takes the memory of a copy of the
    parameters while it runs.

    Args:
        model: any module; its outputs are differentiated with respect to its parameters and to the example.
        example: its input, or a tuple of its inputs.

    Example:
        >>> import torch, flowkernels as fk
        >>> flow = fk.models.realnvp(6)
        >>> fk.warmup(flow, torch.randn(32, 6))
        >>> all(p.grad is None for p in flow.parameters())
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    arguments = example if isinstance(example, tuple) else (example,)
    with _unchanged(model, arguments):
        with torch.no_grad():
            model(*arguments)
        with torch.enable_grad():
            outputs = [t for t in tree_leaves(model(*arguments)) if isinstance(t, Tensor) and t.requires_grad]
            wanted = [t for t in (*model.parameters(), *tree_leaves(arguments)) if _needs_gradient(t)]
            if outputs and wanted:
                torch.autograd.grad(sum(map(_loss, outputs)), wanted, allow_unused=True)
    for device in {t.device for t in _state(model, arguments) if t.device.type != "cpu"}:
        torch.get_device_module(device).synchronize(device)


def _needs_gradient(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _loss(output: Tensor) -> Tensor:
    """A number whose gradient has the strides that training gives: expanded for log-densities, else dense."""
    return output.sum() if output.dim() <= 1 else output.abs().square().sum() / 2


def _state(model: nn.Module, arguments: tuple) -> list[Tensor]:
    inputs = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return [*model.parameters(), *model.buffers(), *inputs]


@contextlib.contextmanager
def _unchanged(model: nn.Module, arguments: tuple) -> Iterator[None]:
    """Puts everything back: tensors that were written, attributes that were set, and torch's random state."""
    tensors = _state(model, arguments)
    saved = [(t, t.detach().clone()) for t in tensors]
    registers = [register for module in model.modules() for register in _registers(module)]
    before = [(register, dict(register)) for register in registers]
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        try:
            yield
        finally:
            for register, content in before:
                _restore(register, content)
            with torch.no_grad():
                for tensor, values in saved:
                    if not torch.equal(tensor, values):  # not by version: batch normalisation writes behind its back
                        tensor.copy_(values)


def _registers(module: nn.Module) -> list[dict[str, object]]:
    """Where a module keeps its attributes: its dictionary, and those of parameters, buffers and submodules in it."""
    return [module.__dict__, *(value for value in module.__dict__.values() if type(value) is dict)]


def _restore(register: dict[str, object], content: dict[str, object]) -> None:
    """Make the register what it was, untouched if it still is: torch.compile's guards look at it."""
    if register.keys() != content.keys() or any(register[name] is not value for name, value in content.items()):
        register.clear()
        register.update(content)
