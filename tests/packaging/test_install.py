"""What people install: wheels with and without compilers, the source distribution, imports with parts missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(*command, expect=0, **environment):
    """The output of a command, which must exit as expected. A variable that is None is taken out."""
    merged = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    done = subprocess.run(command, env=merged, capture_output=True, text=True, cwd="/")
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def copy_of_source(folder: Path) -> Path:
    """The tracked files alone, as a clone has them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def pip(*arguments, **options):
    return run(sys.executable, "-m", "pip", *arguments, **options)


def build_wheel(source: Path, out: Path, *options: str, **environment) -> tuple[list[str], str]:
    """The names inside the wheel, and what was said while building."""
    said = pip("wheel", "-v", "--no-deps", *options, "--wheel-dir", str(out), str(source), **environment)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist(), said


def native(names: list[str]) -> list[str]:
    return sorted(Path(name).name.split(".")[0] for name in names if name.endswith(".so"))


def test_sdist_builds_to_a_wheel_in_an_isolated_environment(tmp_path):
    source = copy_of_source(tmp_path / "source")
    run(
        sys.executable,
        "-c",
        f"import os; os.chdir({str(source)!r}); from setuptools import build_meta as b;"
        f" b.build_sdist({str(tmp_path)!r})",
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    for needed in ("csrc/flow/affine_coupling.h", "csrc/cuda/affine_coupling.cu", "CMakeLists.txt", "LICENSE"):
        assert any(name.endswith(needed) for name in names), needed
    contents, _ = build_wheel(archive, tmp_path / "wheel", FLOWKERNELS_CUDA="off")
    assert native(contents) == ["_cpu"]
    assert not any(name.startswith(("csrc", "tests")) for name in contents)


def test_without_a_compiler_the_package_is_pure_python_and_says_so(tmp_path):
    source = copy_of_source(tmp_path / "source")
    contents, said = build_wheel(source, tmp_path / "wheel", "--no-build-isolation", PATH="/nonexistent", CXX=None)
    assert native(contents) == []
    assert "no C++ compiler found: installing pure Python" in said
    target = tmp_path / "site"
    pip("install", "--no-deps", "--target", str(target), *map(str, (tmp_path / "wheel").glob("*.whl")))
    # An editable install, as that of the Makefile, would lend the package its compiled modules.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
    code = alone + (
        "import torch, flowkernels as fk; print(fk.affine_coupling(torch.ones(2, 2), torch.zeros(2, 4))[0].sum());"
        " from flowkernels.cli import main; main(['info'])"
    )
    said = run(sys.executable, "-c", code, PYTHONPATH=str(target))
    assert "tensor(4.)" in said
    assert "it was not built" in said


def test_cpu_module_can_be_left_out(tmp_path):
    source = copy_of_source(tmp_path / "source")
    options = {"FLOWKERNELS_CPU": "off", "FLOWKERNELS_CUDA": "off"}
    contents, _ = build_wheel(source, tmp_path / "wheel", "--no-build-isolation", **options)
    assert native(contents) == []


def test_settings_that_cannot_be_met_are_refused(tmp_path):
    source = copy_of_source(tmp_path / "source")
    for name, value, message in (
        ("FLOWKERNELS_CUDA", "maybe", "FLOWKERNELS_CUDA must be one of auto, on, off; got 'maybe'"),
        ("FLOWKERNELS_CPU", "1", "FLOWKERNELS_CPU must be one of auto, off; got '1'"),
    ):
        said = pip("wheel", "--no-deps", "--no-build-isolation", str(source), expect=1, **{name: value})
        assert message in said


def test_import_with_parts_missing():
    """No native module, no triton: the reference backend runs, and info says why."""
    code = """
import sys
for name in ("flowkernels._cpu", "flowkernels._cuda", "triton"):
    sys.modules[name] = None
import torch, flowkernels as fk
from flowkernels import backends
fk.affine_coupling(torch.ones(2, 2), torch.zeros(2, 4))
print(backends.problems(torch.device("cpu")))
try:
    with fk.backend("cpu"):
        fk.affine_coupling(torch.ones(2, 2), torch.zeros(2, 4))
except fk.BackendError as error:
    print(error)
"""
    said = run(sys.executable, "-c", code)
    assert "reference: available" in said
    assert "backend 'cpu' was requested and cannot run on cpu" in said


def test_import_makes_no_cuda_call_and_starts_no_threads():
    """A CUDA call at import would break fork; torch comes first, so that its OpenMP runtime is the process's."""
    code = """
import torch, flowkernels, threading
assert not torch.cuda.is_initialized()
assert threading.active_count() == 1
maps = open("/proc/self/maps").read()
assert len({line.split()[-1] for line in maps.splitlines() if "libgomp" in line}) <= 1, "two OpenMP runtimes"
"""
    run(sys.executable, "-c", code)


@pytest.mark.parametrize("isa", ["sse9", "AVX2"])
def test_unknown_isa_is_refused(isa):
    code = "from flowkernels import backends; print(backends.native_module(backends.CPU))"
    said = run(sys.executable, "-c", code, expect=1, FLOWKERNELS_ISA=isa)
    assert "ValueError: FLOWKERNELS_ISA must be one of" in said
    assert f"got '{isa}'" in said


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_isa_can_be_lowered(isa):
    flags = Path("/proc/cpuinfo").read_text()
    if isa == "avx512" and "avx512bw" not in flags:
        pytest.skip("this processor has no AVX-512")
    code = "from flowkernels import backends; print(backends.native_module(backends.CPU).isa)"
    assert run(sys.executable, "-c", code, FLOWKERNELS_ISA=isa).strip() == isa
