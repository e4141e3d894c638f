"""`accelerate`, its report, and the registry of what it knows."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._compat import plain as plain  # of this interface
from ..ops import perceptron

# A library's top-level package, and the file here that knows its layers.
LIBRARIES = {"normflows": "normflows", "nflows": "nflows", "zuko": "zuko", "FrEIA": "freia"}


class Entry(NamedTuple):
    """What is known of one class of a library."""

    library: type[nn.Module]
    fast: type[nn.Module]
    runs: str
    note: str

    @property
    def methods(self) -> list[str]:
        """The library's methods that the fast class overrides."""
        return [name for name in vars(self.fast) if callable(getattr(self.library, name, None)) and name[:2] != "__"]


_entries: dict[type, Entry] = {}
_families: list[type] = []
_fast_enough: dict[type, str] = {}


def register(library: type[nn.Module], *, runs: str, note: str = "") -> Callable[[type], type]:
    """A decorator for the fast form of a class: a subclass of it that overrides the methods which compute.

    Args:
        library: the class whose instances are replaced.
        runs: what the fast form calls, for the report and the table: ``"fk.affine_coupling"``.
        note: what it takes, for the table; empty: everything.

    The fast class is defined at the top level of an importable module. It may have a static method
    ``refuse(module) -> str | None``, which says why an instance is left alone; ``""``: there is nothing to do in it,
    and nothing to say.

    Raises:
        TypeError: for a fast class that is no subclass of `library`, or that has an `__init__` of its own.

    Example:
        >>> import torch, flowkernels as fk
        >>> class Shift(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + 1
        >>> @fk.integrations.register(Shift, runs="one addition")
        ... class FastShift(Shift):
        ...     def forward(self, x):
        ...         return x.add(1)
        >>> fk.accelerate(torch.nn.Sequential(Shift())).replaced
        [Replaced(name='0', was='Shift', runs='one addition')]
    """

    def decorate(fast: type) -> type:
        if not (isinstance(fast, type) and issubclass(fast, library) and fast is not library):
            raise TypeError(f"the fast form must be a subclass of {library.__qualname__}; got {fast!r}")
        if "__init__" in vars(fast):
            raise TypeError(f"{fast.__qualname__} must have no __init__: instances are taken as they are")
        _entries[library] = Entry(library, fast, runs, note)
        return fast

    return decorate


def family(base: type[nn.Module]) -> None:
    """Say that modules of class `base` are flow layers: a report names those that no entry covers."""
    if base not in _families:
        _families.append(base)


def leave_alone(library: type[nn.Module], why: str) -> None:
    """Say why a class of flow layers has no entry: as it is, nothing is gained."""
    _fast_enough[library] = why


class Given:
    """A module as its own library's methods see it, with some attributes replaced for one call.

    ``Library.forward(Given(module, net=lambda *_: raw), x)`` runs the library's formula on what the network has
    returned already, so that it runs once.
    """

    def __init__(self, module: nn.Module, **attributes: Any) -> None:
        self.__dict__.update(attributes, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


_COMPUTED = (torch.float32, torch.float64)


def takes(x: Any, *others: Any) -> bool:
    """Whether these are tensors of one dtype, float32 or float64, on one device, with a batch dimension.

    Other dtypes are left to the library, whose log-determinants have them too.
    """
    if not (isinstance(x, Tensor) and x.dtype in _COMPUTED and x.dim() > 1):
        return False
    dtype, device = x.dtype, x.device
    return all(isinstance(t, Tensor) and t.dtype == dtype and t.device == device for t in others)


def network(net: Any, x: Any) -> Any:
    """What a layer's network returns for x: that of a plain `nn.Sequential` perceptron, on the CPU, in one call."""
    found = perceptron.run(net, x)
    return net(x) if found is None else found


class Replaced(NamedTuple):
    """A module that runs faster now."""

    name: str
    was: str
    runs: str


class Left(NamedTuple):
    """A flow layer that is as it was. `known`: its class is covered, or derives from one that is."""

    name: str
    was: str
    why: str
    known: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """What `accelerate` did. Prints as a table.

    Args:
        model: the model, the same object.
        replaced: the modules that run faster now, by name.
        left_alone: the flow layers that are as they were, and why.
    """

    model: nn.Module
    replaced: list[Replaced]
    left_alone: list[Left]
    _swapped: list[tuple[nn.Module, Entry]] = dataclasses.field(repr=False)

    def undo(self) -> None:
        """Give each replaced module the class that it had. Copies of the model keep theirs."""
        for module, entry in self._swapped:
            if type(module) is entry.fast:
                module.__class__ = entry.library

    def __str__(self) -> str:
        rows = [("module", "class", "now runs"), *self.replaced]
        rows += [(name or "(model)", was, f"as before: {why}") for name, was, why, _ in self.left_alone]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
        summary = f"{len(self.replaced)} replaced, {len(self.left_alone)} left alone"
        return "\n".join([*lines, summary])


def accelerate(
    model: nn.Module, *, exclude: Iterable[str | nn.Module | type] | str | nn.Module | type = (), strict: bool = False
) -> Report:
    """Replace, in place, the layers of other libraries that flowkernels runs faster and reproduces.

    Parameters and buffers stay the very tensors, so that optimisers, copies and state_dicts see no change; values,
    gradients, log-determinants and their shapes are the library's to rounding, and the generator is in the same state
    after every call. The module's class is exchanged for a subclass of it, which pickle and deepcopy take as before.

    Args:
        model: any module; its submodules are looked at too. Covered are the layers of normflows, nflows, zuko and FrEIA
            that `flowkernels.integrations.coverage()` lists, and classes registered with
            `flowkernels.integrations.register`. Subclasses of them are left alone.
        exclude: modules that stay as they are with all they hold: names as in ``model.named_modules()``, modules, or
            classes.
        strict: raise if a layer of a covered class, or derived from one, has to be left alone. The model is then as
            it was.

    Returns:
        A `Report`: `replaced`, `left_alone` with reasons, `undo()`; it prints as a table.

    Raises:
        TypeError: for a model that is no module, and for something else in `exclude`.
        ValueError: for a name in `exclude` that no module has; with `strict`, for a layer left alone, naming it and
            the reason.

    Example:
        >>> import torch, flowkernels as fk
        >>> report = fk.accelerate(torch.nn.Linear(2, 2))
        >>> print(report)
        module  class  now runs
        0 replaced, 0 left alone
        >>> report.undo()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    named = dict(model.named_modules())
    excluded = _excluded(named, exclude)
    _load(named.values())
    replaced, left, swapped = [], [], []
    for name, module in named.items():
        entry, why = _judge(module, module in excluded)
        if entry is not None and why is None:
            swapped.append((module, entry))
            replaced.append(Replaced(name, _name(entry.library), entry.runs))
        elif why:
            left.append(Left(name, _name(type(module)), why, entry is not None))
    refused = [item for item in left if item.known and item.why != _EXCLUDED]
    if strict and refused:
        raise ValueError(f"strict=True, and {refused[0].name or 'the model'} ({refused[0].was}): {refused[0].why}")
    for module, entry in swapped:
        module.__class__ = entry.fast
    return Report(model, replaced, left, swapped)


_EXCLUDED = "excluded"


def _excluded(named: dict[str, nn.Module], exclude: Any) -> set[nn.Module]:
    """The modules that `exclude` names, and all in them."""
    if isinstance(exclude, (str, nn.Module, type)):
        exclude = (exclude,)
    roots: list[nn.Module] = []
    for item in exclude:
        if isinstance(item, str):
            if item not in named:
                raise ValueError(f"exclude names {item!r}, and the model has no module of that name")
            roots.append(named[item])
        elif isinstance(item, type):
            roots += [module for module in named.values() if isinstance(module, item)]
        elif isinstance(item, nn.Module):
            roots.append(item)
        else:
            raise TypeError(f"exclude takes module names, modules and classes; got {item!r}")
    return {inner for root in roots for inner in root.modules()}


def _load(modules: Iterable[nn.Module]) -> None:
    """Import what is known of the libraries that these modules are of."""
    packages = {base.__module__.partition(".")[0] for module in modules for base in type(module).__mro__}
    for package in sorted(packages & LIBRARIES.keys()):
        importlib.import_module(f"{__package__}.{LIBRARIES[package]}")


def _judge(module: nn.Module, excluded: bool) -> tuple[Entry | None, str | None]:
    """The entry that covers the module, if any, and why the module is left alone, if it is and is a flow layer."""
    kind = type(module)
    entry = next((_entries[base] for base in kind.__mro__ if base in _entries), None)
    if entry is None:
        layer = isinstance(module, tuple(_families)) and not any(_flow_layers(module))
        reason = _EXCLUDED if excluded else _fast_enough.get(kind, "no faster form is known")
        return None, reason if layer else None
    if kind is entry.fast:
        return None, None  # accelerated before
    if excluded:
        return entry, _EXCLUDED
    why = _refusal(module, entry)
    if why != "" and kind is not entry.library:
        why = f"a subclass of {_name(entry.library)}"
    return entry, why


def _refusal(module: nn.Module, entry: Entry) -> str | None:
    refuse: Callable[[nn.Module], str | None] = getattr(entry.fast, "refuse", lambda _: None)
    if type(module) is entry.library:
        return _changed(module, entry) or refuse(module)
    with contextlib.suppress(AttributeError, TypeError):  # a derived class need not have what its base has
        return refuse(module)
    return None


def _flow_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The flow layers inside a module: not the networks, though some of them are covered too."""
    own = (kind for kind in _entries if kind.__module__.partition(".")[0] not in LIBRARIES)
    known = (*_families, *own)
    return (inner for inner in module.modules() if inner is not module and isinstance(inner, known))


def _changed(module: nn.Module, entry: Entry) -> str | None:
    """Why the methods that would be overridden are not the library's own, if they are not."""
    for name in entry.methods:
        if name in vars(module):
            return f"its {name} is an attribute of the instance"
        owner = next(base for base in entry.library.__mro__ if name in vars(base))
        method = vars(owner)[name]
        method = getattr(method, "__func__", method)
        if (getattr(method, "__module__", None), getattr(method, "__qualname__", None)) != (
            owner.__module__,
            f"{owner.__qualname__}.{name}",
        ):
            return f"{_name(owner)}.{name} is not the library's own"
    return None


def _name(kind: type) -> str:
    """The class's name with its library's."""
    package = kind.__module__.partition(".")[0]
    return f"{package}.{kind.__name__}" if package in LIBRARIES else kind.__name__


def coverage(*libraries: str) -> list[tuple[str, str, str]]:
    """What `accelerate` covers.

    Args:
        libraries: names of top-level packages; none: those known here that are installed.

    Returns:
        Rows (class, what it runs, note), sorted by name; classes that gain nothing run ``"as it is"``.
    """
    for package in libraries or filter(importlib.util.find_spec, LIBRARIES):
        importlib.import_module(f"{__package__}.{LIBRARIES[package]}")
    rows = [(entry.library, entry.runs, entry.note) for entry in _entries.values()]
    rows += [(kind, "as it is", why) for kind, why in _fast_enough.items()]
    shown = libraries or tuple(LIBRARIES)
    return sorted((_name(kind), runs, note) for kind, runs, note in rows if kind.__module__.partition(".")[0] in shown)
