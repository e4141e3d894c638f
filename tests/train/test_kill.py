"""Runs that are killed or stopped, as child processes."""

import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

import flowkernels
from flowkernels.train import checkpoint

pytest.importorskip("sklearn")

STEPS = ("--steps", 400, "--checkpoint-every", 20)


@pytest.fixture
def start(train_process, one_thread):
    """Start a child process; all of them are gone at the end."""
    root = str(pathlib.Path(flowkernels.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    children = []

    def start(*words):
        environment = {**os.environ, **one_thread, "PYTHONPATH": path}
        pipe = subprocess.PIPE
        child = subprocess.Popen(train_process(*words), env=environment, stdout=pipe, stderr=pipe, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def wait_for_rows(child, path, number):
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") <= number:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_resume_after_sigkill_is_bitwise(start, run_train, tmp_path, assert_same_state):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_train("--out", whole, *STEPS) == 0
    child = start("--out", killed, *STEPS)
    wait_for_rows(child, killed / "metrics.csv", random.randrange(5, 300))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    at = checkpoint.load(killed)["step"]
    assert at < 400
    assert run_train("--out", killed, *STEPS, "--resume") == 0
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    assert_same_state(checkpoint.load(whole), checkpoint.load(killed))


def test_ctrl_c_saves_and_says_how_to_go_on(start, tmp_path):
    child = start("--out", tmp_path, "--steps", 100_000, "--checkpoint-every", 100_000)
    wait_for_rows(child, tmp_path / "metrics.csv", 10)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    step = checkpoint.load(tmp_path)["step"]
    assert step >= 10
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == step + 1
    assert (
        f"flowkernels train --out {tmp_path} --data digits --flow realnvp --device cpu --steps 100000 --batch 64" in out
    )
    assert out.endswith("--resume\n")
