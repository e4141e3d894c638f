"""`flowkernels info` and the command itself, with and without what may be missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import flowkernels as fk
from flowkernels import backends, cli, info


@pytest.fixture
def nothing_built(monkeypatch):
    """A pure-Python installation."""
    backends.forget()
    monkeypatch.setattr(backends, "native_module", lambda number: "it was not built")
    monkeypatch.setattr(backends, "_triton_problem", lambda: "triton cannot be imported: No module named 'triton'")
    yield
    monkeypatch.undo()
    backends.forget()


def test_info_tells_what_runs(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for part in ("versions", "processor", "built", "backends for cpu tensors", "environment"):
        assert f"{part}\n" in out
    assert fk.__version__ in out
    assert torch.__version__ in out


def test_info_without_native_modules_and_triton(nothing_built, capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "cpu module   none: it was not built" in out
    assert "cuda module  none: it was not built" in out
    assert "runs       reference" in out
    assert "no CPU module" in out


def test_info_shows_variables_in_force(monkeypatch):
    monkeypatch.setenv("FLOWKERNELS_ISA", "avx2")
    monkeypatch.delenv("FLOWKERNELS_HUGE_PAGES", raising=False)
    environment = info.sections()["environment"]
    assert environment["FLOWKERNELS_ISA"] == "avx2"
    assert environment["FLOWKERNELS_HUGE_PAGES"].startswith("not set")
    assert len(environment) == 7


def test_info_with_a_request_that_cannot_be_met(nothing_built):
    with fk.backend("cuda"):
        assert info.sections()["backends for cpu tensors"]["runs"].startswith("nothing: backend 'cuda' was requested")


def test_python_m_flowkernels():
    done = subprocess.run(
        [sys.executable, "-m", "flowkernels", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fk.__version__


def test_info_imports_no_other_command():
    code = (
        "import sys; from flowkernels.cli import main; main(['info']);"
        "loaded = [m for m in sys.modules if m.startswith(('flowkernels.bench', 'flowkernels.train', 'matplotlib'))];"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["benchmark"])
    assert stopped.value.code == 2
    assert "'benchmark'" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: flowkernels {name}" in capsys.readouterr().out


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert cli.main(["info"]) == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
