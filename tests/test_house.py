"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "flowkernels"

# Which parts of the package a part may import: everything on a lower line, never a higher one.
LEVELS = (
    ("version", "tolerances", "_compat"),
    ("backends",),
    ("ops", "machine"),
    ("functional",),
    ("nn",),
    ("bases",),
    ("flows",),
    ("models", "integrations"),
    ("inspect", "bench", "check", "info", "train"),
    ("cli",),
    ("__main__", "__init__"),
)


def level(module: str) -> int:
    part = module.split(".")[0]
    return next(n for n, parts in enumerate(LEVELS) if part in parts)


def imports(path: Path) -> list[str]:
    """The parts of flowkernels that a file imports, as dotted names below the package."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level]
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found += [".".join([*base, name]) for name in names]
            elif (node.module or "").startswith("flowkernels"):
                tail = node.module.removeprefix("flowkernels").strip(".")
                found += [tail or alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [a.name.removeprefix("flowkernels.") for a in node.names if a.name.startswith("flowkernels.")]
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imports(path):
        if name.split(".")[0] != own.split(".")[0]:
            assert level(name) < level(own), f"{own} imports {name}"


def test_csrc_knows_no_torch():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path


def test_flow_includes_neither_backend_nor_runtime():
    for path in (ROOT / "csrc" / "flow").iterdir():
        for included in re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text()):
            assert included.startswith("flow/") or "/" not in included, f"{path.name} includes {included}"
            assert not included.startswith("cuda"), f"{path.name} includes {included}"


OPS = sorted(path.name for path in (PACKAGE / "ops").iterdir() if (path / "reference.py").exists())


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_at_every_level(op):
    for place in (
        f"csrc/flow/{op}.h",
        f"csrc/cpu/{op}.cpp",
        f"csrc/cuda/{op}.cu",
        f"flowkernels/ops/{op}/reference.py",
        f"flowkernels/ops/{op}/triton.py",
        f"tests/ops/test_{op}.py",
        f"flowkernels/ops/{op}/plan.py",
        f"flowkernels/ops/{op}/cost.py",
        f"docs/{op}.md",
    ):
        assert (ROOT / place).exists(), place
    assert f"def {op}(" in (PACKAGE / "functional.py").read_text()


def test_environment_variables_are_documented_in_one_place():
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp"), ROOT / "setup.py"]
    used = set()
    for path in sources:
        reads = r"(?:environ\.get\(|environ\[|getenv\(|setting\()\"(FLOWKERNELS_[A-Z_]+)"
        used |= set(re.findall(reads, path.read_text()))
    documented = set(re.findall(r"^\| `(FLOWKERNELS_[A-Z_]+)`", (ROOT / "docs" / "building.md").read_text(), re.M))
    assert used == documented
    assert len(used) <= 7


def test_no_file_is_executable_by_accident():
    for path in ROOT.glob("flowkernels/**/*.py"):
        assert not os.access(path, os.X_OK), path
