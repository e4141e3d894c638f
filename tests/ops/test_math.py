"""The elementary functions of csrc/flow/math.h on the host: within 4 ulp over the whole range of float32."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from flowkernels import backends

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(backends.interpreting(), reason="host functions need no interpreter")

SMALLEST = np.float32(1.17549435e-38)
SHARES = "math::logs_of_shares(x, 1.0f - x)"


def log_of_share(x):
    return np.log(np.where(x < SMALLEST, 0, x))


# Name: the C++ expression of x, the same in float64, the range, what a value outside float32's normal range becomes.
FUNCTIONS = {
    "exp": ("math::exp(x)", np.exp, (-np.inf, np.inf)),
    "exp_normal": ("math::exp_normal(x)", lambda x: np.where(x < np.float32(-86.9), 0.0, np.exp(x)), (-np.inf, np.inf)),
    "exp_negative": ("math::exp_negative(x)", lambda x: np.where(x < np.float32(-86.9), 0.0, np.exp(x)), (-np.inf, 0)),
    "tanh": ("math::tanh(x)", np.tanh, (-np.inf, np.inf)),
    "log": ("math::log(x)", np.log, (0, np.inf)),
    "log1p_unit": ("math::log1p_unit(x)", np.log1p, (0, 1)),
    "atan": ("math::atan(x)", np.arctan, (-np.inf, np.inf)),
    "sigmoid": ("math::sigmoid(x)", lambda x: 1 / (1 + np.exp(-x)), (-np.inf, np.inf)),
    "log_sigmoid": ("math::log_sigmoid(x)", lambda x: -np.logaddexp(0, -x), (-np.inf, np.inf)),
    "softplus": ("math::softplus(x)", lambda x: np.logaddexp(0, x), (-np.inf, np.inf)),
    "expm1_positive": ("math::expm1_positive(x)", np.expm1, (0, 88)),
    "tanh_of_pair": ("math::tanh_sech2(x).tanh", np.tanh, (-np.inf, np.inf)),
    "sech2": ("math::tanh_sech2(x).sech2", lambda x: 1 / np.cosh(x) ** 2, (-43, 43)),
    "half": ("up(down_half(x))", lambda x: x.astype(np.float16).astype(np.float64), (-np.inf, np.inf)),
    "log_of_share": (f"{SHARES}.x", log_of_share, (0, 0.5)),
    "logs_of_shares": (f"{SHARES}.x + {SHARES}.y", lambda x: log_of_share(x) + np.log1p(-x), (0, 1)),
    "log_odds": (f"{SHARES}.x - {SHARES}.y", lambda x: log_of_share(x) - np.log1p(-x), (0, 0.25)),
    "log_odds_of_more": (f"{SHARES}.x - {SHARES}.y", lambda x: np.log(x) - np.log1p(-x), (0.75, 1)),
}
FLAGS = {"baseline": (), "avx2": ("-march=x86-64-v3",), "avx512": ("-march=x86-64-v4",)}


@functools.cache
def library(isa: str) -> ctypes.CDLL:
    """Every function over an array, compiled as the CPU module is."""
    lines = ['#include "flow/half.h"', "using namespace flowkernels;"]
    lines += [
        f'extern "C" void fk_{name}(const float* in, float* out, long n)'
        f" {{ for (long i = 0; i < n; ++i) {{ const float x = in[i]; out[i] = {expression}; }} }}"
        for name, (expression, _, _) in FUNCTIONS.items()
    ]
    folder = Path(tempfile.mkdtemp(prefix="flowkernels-math-"))
    (folder / "math.cpp").write_text("\n".join(lines))
    flags = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", *FLAGS[isa])
    command = [shutil.which("c++"), *flags, f"-I{ROOT / 'csrc'}", str(folder / "math.cpp"), "-o", str(folder / "m.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "m.so"))


def values(low: float, high: float) -> np.ndarray:
    """Every 4,099th float32 there is, subnormals, zeros and infinities among them, within a range."""
    every = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 1.1754944e-38, 1, -1], dtype=np.float32)
    every = np.concatenate([every, special])
    return np.ascontiguousarray(every[(every >= low) & (every <= high)])


def apply(isa: str, name: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    pointer = ctypes.POINTER(ctypes.c_float)
    getattr(library(isa), f"fk_{name}")(x.ctypes.data_as(pointer), out.ctypes.data_as(pointer), ctypes.c_long(x.size))
    return out


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error in units of the last place of the exact value."""
    rounded = exact.astype(np.float32)
    unit = np.maximum(np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, 1))), 2.0**-149).astype(np.float64)
    same = got == rounded
    with np.errstate(invalid="ignore"):
        return np.where(same, 0, np.abs(got.astype(np.float64) - exact) / unit)


def has(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    return {"baseline": True, "avx2": "avx2" in flags, "avx512": "avx512bw" in flags}[isa]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_four_ulp(isa, name):
    if not has(isa):
        pytest.skip(f"this processor has no {isa}")
    _, exact, (low, high) = FUNCTIONS[name]
    x = values(low, high)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64))
    worst = ulps(apply(isa, name, x), expected)
    assert worst.max() <= (0 if name == "half" else 4), x[worst.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_in_nan_out(name):
    assert np.isnan(apply("baseline", name, np.array([np.nan] * 8, dtype=np.float32))).all()
