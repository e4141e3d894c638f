"""`make gpu` where there is no GPU, and how it puts its report together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.gpu import run

ROOT = Path(__file__).resolve().parents[2]
BLIND = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # also on a machine with a GPU
REASON = "no CUDA device for torch "


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    command = [sys.executable, ROOT / "tests" / "gpu" / "run.py"]
    done = subprocess.run(command, cwd=tmp_path, env=BLIND, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"make gpu: {REASON}")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_every_gpu_test_is_skipped_with_a_reason(tmp_path):
    path = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests/gpu", f"--junitxml={path}"]
    done = subprocess.run(command, cwd=ROOT, env=BLIND, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    cases = list(ElementTree.parse(path).iter("testcase"))
    assert len({case.get("classname") for case in cases}) >= 5  # one for each file
    for case in cases:
        assert case.find("skipped").get("message").startswith(REASON)
    with pytest.raises(ValueError, match="no test ran"):
        run.read_tests(path)


def test_every_gpu_test_is_marked():
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert "\npytestmark = pytest.mark.gpu\n" in path.read_text(), path.name


def python(program: str, **options) -> run.Step:
    return run.Step("step", (sys.executable, "-c", program), **options)


def test_a_step_that_succeeds(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"answer": 42}')
    entry = run.perform(python("print('working')", read=lambda lines: [lines, json.loads(path.read_text())]))
    assert entry["status"] == run.OK
    assert entry["result"] == [["working\n"], {"answer": 42}]
    assert "output" not in entry


@pytest.mark.parametrize(
    "program, options, reason",
    [
        ("print('oops'); raise SystemExit(3)", {}, "exit status 3"),
        ("import os; print('oops', flush=True); os.abort()", {}, "exit status -6"),
        ("import time; print('oops', flush=True); time.sleep(60)", {"seconds": 2}, "killed after 2 s"),
        ("print('oops')", {"read": run.read_summary}, "its result cannot be read: the tool printed no summary"),
        ("print('oops')", {"read": run._json_of(Path("nowhere"))}, "its result cannot be read: .*nowhere.*"),
    ],
)
def test_a_step_that_fails_is_recorded(program, options, reason):
    entry = run.perform(python(program, **options))
    assert entry["status"] == run.FAILED
    assert entry["result"] is None
    assert entry["output"] == "oops\n"
    assert re.fullmatch(reason, entry["reason"])


def test_without_compute_sanitizer_its_steps_are_skipped():
    entries = [run.perform(step) for step in run.sanitizer_steps(None)]
    assert [entry["name"] for entry in entries] == list(run.TOOLS)
    for entry in entries:
        assert entry["status"] == run.SKIPPED
        assert "compute-sanitizer is neither on PATH" in entry["reason"]


def test_each_tool_watches_the_same_calls():
    steps = run.sanitizer_steps("/opt/compute-sanitizer")
    for step, tool in zip(steps, run.TOOLS, strict=True):
        assert step.command[:3] == ("/opt/compute-sanitizer", "--tool", tool)
        assert step.command[-2:] == ("-m", "tests.gpu.sanitized")
    line = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert run.read_summary(["90 calls ran\n", line])["summary"].startswith("RACECHECK SUMMARY: 0 hazards")


CASES = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_values" name="good" />
<testcase classname="tests.gpu.test_values" name="bad"><failure message="off by one">traceback</failure></testcase>
<testcase classname="tests.gpu.test_large" name="a"><skipped message="memory is short" /></testcase>
<testcase classname="tests.gpu.test_large" name="b"><skipped message="memory is short" /></testcase>
</testsuite></testsuites>"""


def test_the_tests_report_is_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(CASES)
    assert run.read_tests(path) == {
        "passed": 1,
        "failed": 1,
        "skipped": {"memory is short": 2},
        "failures": [{"test": "tests.gpu.test_values::bad", "message": "off by one", "text": "traceback"}],
    }


def test_the_report_is_one_json_and_decides_the_exit_status(monkeypatch, tmp_path, capsys):
    good = python("print('fine')", read=lambda lines: {"lines": len(lines)})
    bad = python("raise SystemExit(1)")
    skipped = run.Step("racecheck", None, skip="no compute-sanitizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "why_no_gpu", lambda: None)
    monkeypatch.setattr(run, "facts", lambda: {"device": "a device", "commit": "0123"})
    for planned, status in (([good, skipped], 0), ([good, bad, skipped], 1)):
        monkeypatch.setattr(run, "steps", lambda folder, planned=planned: planned)
        assert run.main() == status
        written = json.loads((tmp_path / run.REPORT).read_text())
        assert written["device"] == "a device"
        assert written["complete"]
        assert written["failed"] == ["step"] * status
        assert [entry["status"] for entry in written["steps"]] == [
            run.OK if step is good else run.SKIPPED if step is skipped else run.FAILED for step in planned
        ]
        assert written["steps"][0]["result"] == {"lines": 1}
    out = capsys.readouterr().out
    assert str(tmp_path / run.REPORT) in out
    assert "CUDA_LAUNCH_BLOCKING=1" in out


def test_facts_survive_where_nothing_can_be_asked(monkeypatch):
    monkeypatch.setattr(run, "_output_of", lambda *command: None)
    about = run.facts()
    assert about["device"] is None
    assert about["driver"] is None
    assert json.loads(json.dumps(run.report(about, [], True)))["schema"] == run.SCHEMA
