"""Runs a library's own tests twice, as they are and with every model and layer in them accelerated.

    python own_suite.py REPORT LIBRARY ARGUMENTS...    # pytest's, for both runs

A process of its own, because the library's classes are changed. REPORT is JSON: which tests passed and failed, what was
replaced and what it answered, and why layers of covered classes were left alone.
"""

from __future__ import annotations

import functools
import importlib
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flowkernels import functional
from flowkernels.integrations import Given, accelerate, nsf
from flowkernels.integrations.core import LIBRARIES, _entries, _name


class Outcomes:
    """A plugin of pytest: a test draws the same numbers in both runs, and what became of it is kept."""

    def __init__(self) -> None:
        self.passes: Counter[str] = Counter()  # of a test and its subtests
        self.failed: dict[str, str] = {}
        self.drawn: dict[str, int] = {}  # in what state a test leaves torch's generator

    def pytest_runtest_setup(self) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002, libraries draw from there
        torch.manual_seed(0)

    def pytest_runtest_teardown(self, item) -> None:
        self.drawn[item.nodeid] = zlib.crc32(torch.get_rng_state().numpy())

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)
        elif report.passed and report.when == "call":
            self.passes[report.nodeid] += 1

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)

    def found(self) -> dict:
        passed = {name: passes for name, passes in self.passes.items() if name not in self.failed}
        return {"passed": passed, "failed": self.failed, "drawn": self.drawn}


def provider(kind: type, name: str) -> type:
    """The class from which another has a method."""
    return next(base for base in kind.__mro__ if name in vars(base))


class Accelerating:
    """Accelerates what a library's classes construct, and counts what comes of it.

    Args:
        library: a top-level package. All its modules that matter are imported.
    """

    def __init__(self, library: str) -> None:
        self.entries = [entry for kind, entry in _entries.items() if kind.__module__.partition(".")[0] == library]
        self.names = {entry.fast: _name(entry.library) for entry in self.entries}
        self.replaced: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # calls of fast methods, less those that the library's own answered
        self.ops: Counter[str] = Counter()
        self.left_alone: set[tuple[str, str]] = set()
        self.under_way = 0
        for entry in self.entries:
            for name in entry.methods:
                self._count_method(entry.fast, name, 1)
                self._count_method(provider(entry.library, name), name, -1)
        for here in (sys.modules[self.entries[0].fast.__module__], nsf):
            for name, op in list(vars(here).items()):
                if getattr(op, "__module__", None) == functional.__name__:
                    setattr(here, name, self._counting_op(op))
        for kind in set(modules_of(library)):
            kind.__init__ = self._constructing(kind.__init__)

    def _count_method(self, kind: type, name: str, change: int) -> None:
        method = vars(kind)[name]
        if getattr(method, "is_counted", False):  # it is several classes' own
            return

        @functools.wraps(method)  # `accelerate` knows the library's methods by their names
        def counted(module, *args, **kwargs):
            fast = type(vars(module)["_module"] if type(module) is Given else module)
            if fast in self.names and kind in (fast, provider(fast.__base__, name)):
                self.answered[self.names[fast]] += change
            return method(module, *args, **kwargs)

        counted.is_counted = True
        setattr(kind, name, counted)

    def _counting_op(self, op: Callable) -> Callable:
        @functools.wraps(op)
        def counted(*args, **kwargs):
            self.ops[op.__name__] += not self.under_way  # not what `accelerate` tries out
            return op(*args, **kwargs)

        return counted

    def _constructing(self, init: Callable) -> Callable:
        """A constructor, after which the module is accelerated with all it holds, as a user does it."""

        @functools.wraps(init)
        def constructed(module, *args, **kwargs):
            self.under_way += 1
            try:
                init(module, *args, **kwargs)
                # A part waits for the whole; of a class that a test derives, this is not the last constructor.
                if self.under_way == 1 and hasattr(type(module).__init__, "__wrapped__"):
                    self._accelerate(module)
            finally:
                self.under_way -= 1

        return constructed

    def _accelerate(self, module: nn.Module) -> None:
        report = accelerate(module)
        self.replaced.update(item.was for item in report.replaced)
        self.left_alone.update((item.was, item.why) for item in report.left_alone if item.known)

    def found(self) -> dict:
        classes = {name: (self.replaced[name], self.answered[name]) for name in sorted(self.names.values())}
        return {"classes": classes, "ops": self.ops, "left_alone": sorted(self.left_alone)}


def modules_of(library: str, kind: type = nn.Module) -> Iterator[type]:
    """A library's classes of modules that have a constructor of their own."""
    for derived in kind.__subclasses__():
        if derived.__module__.partition(".")[0] == library and "__init__" in vars(derived):
            yield derived
        yield from modules_of(library, derived)


def main(report: str, library: str, *arguments: str) -> None:
    importlib.import_module(f"flowkernels.integrations.{LIBRARIES[library]}")
    plain, accelerated = Outcomes(), Outcomes()
    pytest.main([*arguments], [plain])  # and imports all of the library that its tests use
    accelerating = Accelerating(library)
    pytest.main([*arguments], [accelerated])
    found = {"plain": plain.found(), "accelerated": accelerated.found(), **accelerating.found()}
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
