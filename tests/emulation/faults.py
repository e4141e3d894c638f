"""Copies of the CUDA sources with something wrong in them."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

from .build import ROOT, build


@dataclasses.dataclass(frozen=True)
class Fault:
    """Text of one source file and what to put in its place."""

    file: str
    right: str
    wrong: str


# One pair of dtypes compiles in a few seconds; all of them take half a minute.
FLOAT32_ONLY = [
    Fault("cuda/dispatch.cuh", right, "void()")
    for right in (
        "f(Type<Half>{})",
        "f(Type<BFloat16>{})",
        "f(Type<double>{})",
        "f(x_type, Type<Half>{})",
        "f(x_type, Type<BFloat16>{})",
    )
]
FLOAT32_ONLY.append(
    Fault("cuda/stack_launch.cuh", "f(Type<typename Family<Options>::template Op<double, n.value>>{})", "void()")
)
for call in ("forward<double>(plan, call, workspace, stream)", "backward<double>(plan, call, stream)"):
    FLOAT32_ONLY.append(Fault("cuda/rational_quadratic_spline.cu", f"spline::{call}", "void()"))


class Tree:
    """A copy of what the emulation is built from, with float32 alone."""

    def __init__(self, directory: Path) -> None:
        self.source, self.build = directory / "source", directory / "build"
        shutil.copytree(ROOT / "csrc", self.source / "csrc")
        shutil.copytree(ROOT / "tests" / "emulation", self.source / "tests" / "emulation")
        shutil.copy(ROOT / "CMakeLists.txt", self.source)
        for fault in FLOAT32_ONLY:
            self.plant(fault)

    def plant(self, fault: Fault) -> str:
        """Put a fault in and return the text of the file without it."""
        path = self.source / "csrc" / fault.file
        text = path.read_text()
        assert text.count(fault.right) == 1, (
            f"{fault.file} has changed: {fault.right!r} occurs {text.count(fault.right)} times"
        )
        path.write_text(text.replace(fault.right, fault.wrong))
        return text

    def module(self, **options) -> Path:
        """Build the emulated module."""
        return build("emulated", self.build, self.source, **options)

    def run(self, fault: Fault | None = None, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Build the driver, with a fault or without, and run it; the options are those of `build`."""
        before = fault and self.plant(fault)
        try:
            driver = build("emulation_driver", self.build, self.source, **options)
        finally:
            if fault:
                (self.source / "csrc" / fault.file).write_text(before)
        return subprocess.run([driver, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
