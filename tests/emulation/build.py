"""Builds the CUDA sources for the CPU: the emulated module, and the driver that needs no Python."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

from flowkernels import backends

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Two test processes must not build in one directory at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(str(c) for c in command)}\n{done.stdout}"


def build(target: str, directory: Path, source: Path = ROOT, threads: bool = False, sanitize: str = "") -> Path:
    """Build one target of the emulation and return its file.

    Args:
        target: ``"emulated"`` or ``"emulation_driver"``.
        directory: where to build, always with the same options; what was built there before is used again.
        source: the tree to build.
        threads: threads of the operating system instead of fibres.
        sanitize: sanitizers, as for ``-fsanitize``.
    """
    with _alone_in(directory):
        if not (directory / "build.ninja").exists():  # afterwards ninja sees for itself when to configure again
            _run(
                *("cmake", "-S", source, "-B", directory, "-G", "Ninja"),
                *("-DFLOWKERNELS_BUILD_CPU=OFF", "-DFLOWKERNELS_BUILD_EMULATED=ON", "-DFLOWKERNELS_WERROR=ON"),
                f"-DFLOWKERNELS_EMULATION_THREADS={'ON' if threads else 'OFF'}",
                f"-DFLOWKERNELS_SANITIZE={sanitize}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            )
        _run("cmake", "--build", directory, "--target", target)
    (file,) = directory.glob("_cuda.*.so" if target == "emulated" else target)
    return file


@functools.cache
def load() -> ModuleType:
    """The emulated module; EMULATED_MODULE names another build of it, a sanitised one."""
    file = os.environ.get("EMULATED_MODULE") or build("emulated", ROOT / "build" / "emulated")
    # By another name: of one name pybind11 makes one module only, and the real one may be loaded.
    spec = importlib.util.spec_from_file_location("flowkernels.emulated._cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated_cuda(monkeypatch) -> Iterator[ModuleType]:
    """The emulated module in the place of `flowkernels._cuda`: CPU tensors can then use the ``"cuda"`` backend."""
    module = load()
    module.emulation.reset()
    module.emulation.schedule("forward")
    module.emulation.count_sectors(False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "flowkernels._cuda", module)
        backends.forget()
        yield module
    backends.forget()
