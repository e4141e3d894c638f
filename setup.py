"""Drives CMake: which native modules can be built here, and where they go. Everything else is in pyproject.toml.

FLOWKERNELS_CPU=auto|off, FLOWKERNELS_CUDA=auto|on|off and FLOWKERNELS_CUDA_ARCHS choose; docs/building.md explains.
No GPU is ever asked for and torch is not needed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = ("75-real", "80-real", "90-real", "100", "120")


def setting(name, allowed):
    value = os.environ.get(name, "auto")
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def say(text):
    print(f"flowkernels: {text}", file=sys.stderr, flush=True)


def cxx_compiler():
    """The C++ compiler that CMake would take, or None."""
    wanted = os.environ.get("CXX")
    names = shlex.split(wanted)[:1] if wanted else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def nvcc():
    """nvcc by CUDACXX, CUDA_HOME, the usual prefix or PATH, or None."""
    places = [os.environ.get("CUDACXX")]
    places += [os.path.join(home, "bin", "nvcc") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next(filter(None, map(shutil.which, filter(None, [*places, "nvcc"]))), None)


def cuda_architectures(compiler):
    """What FLOWKERNELS_CUDA_ARCHS says, else the default list as far as this nvcc knows it."""
    wanted = os.environ.get("FLOWKERNELS_CUDA_ARCHS")
    if wanted:
        return wanted
    listed = subprocess.run([compiler, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    archs = [arch for arch in DEFAULT_ARCHS if arch.split("-")[0] in known]
    # The newest architecture carries PTX, so that cards made later can run it.
    return ";".join([*archs[:-1], archs[-1].split("-")[0]])


def modules():
    """The native modules to build, saying in one line why one is left out."""
    cpu = setting("FLOWKERNELS_CPU", ("auto", "off"))
    cuda = setting("FLOWKERNELS_CUDA", ("auto", "on", "off"))
    if cuda == "on" and nvcc() is None:
        raise SystemExit("FLOWKERNELS_CUDA=on, but no nvcc was found by CUDACXX, CUDA_HOME, /usr/local/cuda or PATH")
    if cxx_compiler() is None:
        if cuda == "on":
            raise SystemExit("FLOWKERNELS_CUDA=on, but no C++ compiler was found")
        if cpu == "auto":
            say("no C++ compiler found: installing pure Python (Triton and reference backends)")
        return []
    if cuda == "auto" and nvcc() is None:
        say("no nvcc found: building without the CUDA module")
    wanted = {"_cpu": cpu == "auto", "_cuda": cuda != "off" and nvcc() is not None}
    return [name for name, build in wanted.items() if build]


class CMakeBuild(build_ext):
    """Builds all modules by one CMake run."""

    def run(self):
        # Always the same place, so that a second build finds the compiled objects of the first.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        names = [extension.name.rpartition(".")[2] for extension in self.extensions]
        options = [
            f"-DFLOWKERNELS_BUILD_CPU={'ON' if '_cpu' in names else 'OFF'}",
            f"-DFLOWKERNELS_BUILD_CUDA={'ON' if '_cuda' in names else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={self.pybind11_directory()}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # pip's isolated environments come and go
        ]
        if "_cuda" in names:
            compiler = nvcc()
            options += [f"-DCMAKE_CUDA_COMPILER={compiler}"]
            options += [f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures(compiler)}"]
        say(f"building {' and '.join(names)} with {cxx_compiler()}")
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options], check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", *names], check=True)
        for extension in self.extensions:
            self.place(build, extension)

    def place(self, build, extension):
        target = Path(self.get_ext_fullpath(extension.name))
        if self.inplace:
            target = ROOT / Path(*extension.name.split(".")).parent / target.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (built,) = build.glob(extension.name.rpartition(".")[2] + ".*" + target.suffix)
        # By rename: a process that has the old module mapped keeps it.
        shutil.copy2(built, target.with_name(target.name + ".new"))
        target.with_name(target.name + ".new").replace(target)

    @staticmethod
    def pybind11_directory():
        import pybind11

        return pybind11.get_cmake_dir()


# Reading the version or making an sdist builds nothing, and must not talk about compilers.
building = any(command in sys.argv for command in ("bdist_wheel", "build_ext", "editable_wheel", "install", "develop"))
setup(
    ext_modules=[Extension(f"flowkernels.{name}", sources=[]) for name in modules()] if building else [],
    cmdclass={"build_ext": CMakeBuild},
)
