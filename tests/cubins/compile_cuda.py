"""Build the CUDA module and print what the machine code of its kernels is like, as JSON.

No GPU is needed. To write the committed table anew:

    python -m tests.cubins.compile_cuda > tests/cubins/cuda_table.json
"""

from __future__ import annotations

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

from . import sass

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # setup.py's, so that nothing is compiled twice
KERNEL = re.compile(r"([\w:]+)_kernel<(.*)>\(")


def nvcc() -> str | None:
    """The compiler that setup.py would take."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [os.environ.get("CUDACXX"), *(os.path.join(home, "bin", "nvcc") for home in homes if home), "nvcc"]
    return next(filter(None, map(shutil.which, filter(None, places))), None)


def cuobjdump() -> str | None:
    """The disassembler, of the toolkit or of the Triton wheel."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def cmake() -> str:
    """That which made the build directory, if there is one: another would compile everything anew."""
    cache = BUILD / "CMakeCache.txt"
    found = re.search("^CMAKE_COMMAND:INTERNAL=(.*)$", cache.read_text(), re.MULTILINE) if cache.exists() else None
    return (found and shutil.which(found[1])) or "cmake"  # pip's isolated environments come and go


@functools.cache
def module() -> Path:
    """The CUDA module for all default architectures, built if its sources have changed."""
    options = {
        "FLOWKERNELS_BUILD_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": nvcc(),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    given = [f"-D{name}={value}" for name, value in options.items()]
    # FLOWKERNELS_CUDA_ARCHS may have chosen others for the installed module.
    configure = ["-S", ROOT, "-B", BUILD, "-G", "Ninja", "-UCMAKE_CUDA_ARCHITECTURES", *given]
    program = cmake()
    for arguments in (configure, ["--build", BUILD, "--target", "_cuda"]):
        done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout)
    (file,) = BUILD.glob("_cuda.*.so")
    return file


def compiler_version() -> str:
    """nvcc's, as 13.0."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def dump(what: str) -> str:
    """cuobjdump's text about all kernels of the module, names in readable form."""
    text = subprocess.run([cuobjdump(), what, module()], stdout=subprocess.PIPE, text=True, check=True).stdout
    return subprocess.run(["c++filt"], input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def name_of(line: str) -> str | None:
    """The short name of the kernel that a line announces: affine::forward_kernel<float, Half, Scattered> is
    "affine forward float Half Scattered"."""
    found = KERNEL.search(line.replace("flowkernels::", "").replace("cuda::", "").replace("stack::", ""))
    return found and " ".join(re.findall(r"\w+", f"{found.group(1)} {found.group(2)}"))


def codes() -> dict[tuple[str, str], list[sass.Instruction]]:
    """The instructions of each kernel, by architecture and name."""
    found: dict[tuple[str, str], list[sass.Instruction]] = {}
    for arch in dump("-sass").split("\narch = ")[1:]:
        for function in arch.split("Function : ")[1:]:
            name = name_of(function.partition("\n")[0])
            if name:  # the kernel that sums rows is in several sources: the same code
                found[arch.partition("\n")[0], name] = sass.instructions(function)
    return found


def usage() -> dict[tuple[str, str], dict[str, int]]:
    """Registers, stack and shared memory, by architecture and kernel."""
    found = {}
    arch = name = ""
    for line in dump("-res-usage").splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif "Function " in line:
            name = name_of(line)
        elif name and "REG:" in line:
            found[arch, name] = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    return found


def count(codes: collections.Counter, pattern: str) -> int:
    """How many instructions have an opcode that matches."""
    return sum(number for code, number in codes.items() if re.match(pattern, code))


def of_a_layer(name: str, code: list[sass.Instruction]) -> dict[str, int]:
    """For the kernels that go through the layers of a stack."""
    direction = re.match(r"(forward|backward) (Planar|Radial) ", name)
    return {"instructions of a layer": sass.instructions_of_a_layer(code, direction[1])} if direction else {}


def describe(name: str, code: list[sass.Instruction], resources: dict[str, int]) -> dict[str, int]:
    """One row of the table."""
    codes = collections.Counter(instruction.opcode for instruction in code)
    return {
        "registers": resources["REG"],
        "stack": resources["STACK"] + resources["LOCAL"],
        "shared": resources["SHARED"],
        "instructions": len(code),
        **of_a_layer(name, code),
        "local": count(codes, r"LDL|STL"),
        "loads": count(codes, r"LDG"),
        "loads of 128 bits": count(codes, r"LDG.*\.128"),
        "stores": count(codes, r"STG"),
        "stores of 128 bits": count(codes, r"STG.*\.128"),
        "double": count(codes, r"DFMA|DMUL|DADD|DSETP|DMNMX|F2F.*F64"),
    }


def table() -> dict[str, object]:
    """What cuda_table.json holds: for each architecture, for each kernel, its row."""
    resources = usage()
    rows: dict[str, dict[str, object]] = {}
    for (arch, name), code in sorted(codes().items()):
        rows.setdefault(arch, {})[name] = describe(name, code, resources[arch, name])
    return {"nvcc": compiler_version(), "kernels": rows}


def text_of(contents: dict[str, object]) -> str:
    """JSON with one line per kernel."""
    archs = (
        f' "{arch}": {{\n' + ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in kernels.items()) + "\n }"
        for arch, kernels in contents["kernels"].items()
    )
    return f'{{"nvcc": "{contents["nvcc"]}", "kernels": {{\n' + ",\n".join(archs) + "\n}}"


if __name__ == "__main__":
    print(text_of(table()))
