"""The libraries' own tests, with every model and layer in them accelerated: they pass as without."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from flowkernels.integrations import coverage

pytestmark = pytest.mark.slow

RUNNER = Path(__file__).with_name("own_suite.py")


class Suite(NamedTuple):
    """A library's own tests, and what must come of them.

    Args:
        least: how many tests pass.
        replaced: for each covered class, how many instances are replaced at least, and how many calls of its methods
            they answer; the rest, such as those that initialise, are the library's.
        ops: how often the ops are called at least; `accelerate` trying out a layer is not counted.
        unused: the covered classes that these tests make no use of.
        failing: the tests that fail without us too.
        files: where not all tests are run: the files of those with layers of covered classes.
        without: tests that are slow and have no such layer.
        sources: what to download besides the library, for tests that are not in its wheel; None: they are.
    """

    least: int
    replaced: dict[str, tuple[int, int]]
    ops: dict[str, int]
    unused: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    files: tuple[str, ...] = ("",)
    without: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = ()


SUITES = {
    "normflows": Suite(
        least=52,
        replaced={
            "ActNorm": (23, 6),
            "AffineConstFlow": (8, 26),
            "AffineCoupling": (17, 2),
            "AffineCouplingBlock": (17, 70),
            "ConvNet2d": (14, 12),
            "GlowBlock": (17, 7),  # alone; the others are in runs
            "Invertible1x1Conv": (17, 17),
            "MLP": (39, 240),
            "MaskedAffineFlow": (12, 103),
            "MaskedPiecewiseRationalQuadraticAutoregressive": (7, 59),
            "Merge": (20, 4),
            "MultiscaleFlow": (2, 12),
            "Permute": (2, 4),
            "PiecewiseRationalQuadraticCDF": (6, 12),
            "PiecewiseRationalQuadraticCoupling": (10, 20),
            "Planar": (6, 9),
            "Radial": (3, 3),
            "ResidualNet": (8, 0),  # of few rows, and more units than are taken then
            "Split": (18, 4),
            "Squeeze": (5, 0),  # of few elements
        },
        ops={"actnorm": 32, "affine_coupling": 175, "planar": 9, "radial": 3, "rational_quadratic_spline": 91},
        unused=("ClassCondFlow", "NormalizingFlow", "NormalizingFlowVAE"),  # its tests have no runs in these
        sources=None,
    ),
    "nflows": Suite(
        least=135,
        replaced={
            "ActNorm": (10, 10),
            "AdditiveCouplingTransform": (6, 8),
            "AffineCouplingTransform": (16, 18),
            "MaskedAffineAutoregressiveTransform": (19, 231),
            "PiecewiseRationalQuadraticCDF": (7, 8),
            "PiecewiseRationalQuadraticCouplingTransform": (14, 18),
            "ResidualNet": (44, 10),
            "SqueezeTransform": (5, 6),
        },
        ops={"actnorm": 10, "affine_coupling": 257, "rational_quadratic_spline": 26},
        unused=("MaskedPiecewiseRationalQuadraticAutoregressiveTransform",),
        failing=(  # torch.solve is no more
            "tests/transforms/linear_test.py::NaiveLinearTest::test_forward_inverse_are_consistent",
            "tests/transforms/linear_test.py::NaiveLinearTest::test_inverse_no_cache",
        ),
        sources=("torchtestcase==2018.2",),
    ),
    "zuko": Suite(
        least=31,
        replaced={
            "ElementWiseTransform": (3, 7),
            "GeneralCouplingTransform": (15, 122),
            "MaskedAutoregressiveTransform": (32, 390),
        },
        ops={"affine_coupling": 222, "rational_quadratic_spline": 105},
        files=("tests/test_flows.py", "tests/test_bayesian.py"),
        without=("tests/test_flows.py::test_flows[UNAF]",),
    ),
}


def unpack(folder: Path, *requirements: str) -> None:
    """Put the tests and the modules of source distributions in a folder, but not the packages that are installed."""
    # Without isolation and dependencies, pip takes a second: it downloads nothing else, and builds nothing.
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder / "archives")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot download {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1]}")
    for archive in (folder / "archives").iterdir():
        shutil.unpack_archive(archive, folder / "sources")
    for found in (*folder.glob("sources/*/tests"), *folder.glob("sources/torchtestcase-*/torchtestcase.py")):
        shutil.move(found, folder)
    (folder / "tests" / "__init__.py").touch()  # a package, as which nflows' tests import each other


@pytest.fixture(scope="module", params=SUITES)
def library(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def found(library, tmp_path_factory):
    """What came of a library's tests, as they are and accelerated."""
    folder, suite = tmp_path_factory.mktemp(library), SUITES[library]
    root = Path(sys.modules[library].__file__).parent
    if suite.sources is not None:
        unpack(folder, f"{library}=={importlib.metadata.version(library)}", *suite.sources)
        root = folder
    (folder / "pytest.ini").write_text("[pytest]\n")  # ours is not theirs
    arguments = ["-q", f"-c{folder / 'pytest.ini'}", f"--rootdir={root}", "-p", "no:cacheprovider"]
    arguments += [f"--deselect={name}" for name in suite.without] + [str(root / name) for name in suite.files]
    ours = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(RUNNER), str(folder / "found.json"), library, *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **ours}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text())


def test_what_passes_passes_accelerated(library, found):
    plain, accelerated = found["plain"], found["accelerated"]
    broken = {name: why for name, why in accelerated["failed"].items() if name not in plain["failed"]}
    assert not broken, "\n".join(broken.values())
    assert accelerated["passed"] == plain["passed"]
    assert len(plain["passed"]) >= SUITES[library].least
    assert set(plain["failed"]) <= set(SUITES[library].failing), plain["failed"]


def test_as_many_numbers_are_drawn(found):
    assert found["accelerated"]["drawn"] == found["plain"]["drawn"]


def test_every_covered_class_is_replaced_and_answers(library, found):
    suite = SUITES[library]
    classes = {name.removeprefix(f"{library}."): counts for name, counts in found["classes"].items()}
    for name, least in suite.replaced.items():
        assert all(map(int.__ge__, classes[name], least)), (name, classes[name])
    covered = {name.removeprefix(f"{library}.") for name, runs, _ in coverage(library) if runs != "as it is"}
    assert covered == {*suite.replaced, *suite.unused}


def test_ops_run(library, found):
    for op, least in SUITES[library].ops.items():
        assert found["ops"].get(op, 0) >= least, (op, found["ops"])


def test_reasons_are_of_one_line(found):
    """What is left alone is a row of the report."""
    assert not [why for _, why in found["left_alone"] if "\n" in why]
