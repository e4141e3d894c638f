import builtins
import math

import pytest
import torch

import flowkernels as fk
from flowkernels.train import checkpoint, config, data, figures, trainer

pytest.importorskip("sklearn")


def rows(path):
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def tiny_config(**changes):
    settings = {**config.SETTINGS["realnvp"], "transforms": 2, "hidden": (16,), "batch": 64, **changes}
    return config.Config(data="digits", flow="realnvp", shape=(1, 8, 8), levels=17, **settings)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_writes_what_it_promises(run_train, tmp_path, capsys, dtype):
    assert run_train("--out", tmp_path, "--steps", 25, "--checkpoint-every", 10, "--dtype", dtype) == 0
    table = rows(tmp_path / "metrics.csv")
    assert [int(row[0]) for row in table] == list(range(1, 26))
    assert [row[0] for row in table if row[3]] == ["10", "20", "25"]
    assert float(table[-1][2]) < float(table[0][2]) - 3
    state = torch.load(tmp_path / checkpoint.CHECKPOINT, weights_only=True)
    assert state["step"] == 25
    assert all(t.dtype == getattr(torch, dtype) for k, t in state["model"].items() if "order" not in k)
    assert "held-out bits per dimension" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_figures(run_train, run_sample, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run_train("--out", tmp_path, "--steps", 3) == 0
    for name in ("samples.png", "metrics.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "new" / "drawn.png"
    assert run_sample(tmp_path, "--n", 5, "--temperature", 0.5, "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert str(out) in capsys.readouterr().out


def test_without_matplotlib_there_are_no_figures(run_train, run_sample, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run_train("--out", tmp_path, "--steps", 2) == 0
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert run_sample(tmp_path) == 2
    assert not list(tmp_path.glob("*.png"))


def test_a_sheet_shows_every_picture_in_its_place():
    pictures = torch.arange(3 * 6).reshape(3, 1, 2, 3)
    sheet = figures.Sheet((1, 2, 3), 18).tiled(pictures)
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 3)
    torch.testing.assert_close(sheet[1:3, 5:8, 0], pictures[1, 0] / 17)
    torch.testing.assert_close(sheet[4:6, 1:4, 2], pictures[2, 0] / 17)
    assert (sheet[4:6, 5:8] == 1).all()
    assert figures.Sheet((1, 2, 3), 18, columns=3).tiled(pictures).shape == (3 + 1, 3 * 4 + 1, 3)


def test_a_sheet_of_colours_shows_them():
    pictures = torch.tensor([255, 0, 0, 0, 255, 0], dtype=torch.uint8).reshape(2, 3, 1, 1)
    sheet = figures.Sheet((3, 1, 1), 256).tiled(pictures)
    assert sheet[1, 1].tolist() == [1, 0, 0]
    assert sheet[1, 3].tolist() == [0, 1, 0]


def test_a_trainer_leaves_the_global_random_stream_alone():
    pictures = data.load("digits")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run = trainer.Trainer(tiny_config(), pictures, torch.device("cpu"))
    run.advance()
    run.held_out()
    assert torch.equal(torch.rand(3), expected)


def test_the_held_out_noise_is_fixed():
    run = trainer.Trainer(tiny_config(), data.load("digits"), torch.device("cpu"))
    assert run.held_out() == run.held_out()


def test_a_flow_of_pictures_couples_the_checkerboard():
    flow = config.build_model(tiny_config())
    x = torch.arange(64.0)[None]
    permuted = flow.layers[1](x)[0][0]
    colours = [(int(i) // 8 + int(i) % 8) % 2 for i in permuted]
    assert colours == [0] * 32 + [1] * 32
    assert flow.sample(2).shape == (2, 64)


def test_resuming_gives_the_bits_of_an_uninterrupted_run(run_train, tmp_path, assert_same_state):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_train("--out", whole, "--steps", 30, "--checkpoint-every", 10) == 0
    assert run_train("--out", parts, "--steps", 20, "--checkpoint-every", 10) == 0
    assert run_train("--out", parts, "--steps", 30, "--checkpoint-every", 10, "--resume") == 0
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
    assert_same_state(checkpoint.load(whole), checkpoint.load(parts))
    assert run_train("--out", parts, "--steps", 30, "--resume") == 0  # there is nothing left to do


def test_metrics_are_cut_back_to_the_checkpoint(run_train, tmp_path):
    run_train("--out", tmp_path, "--steps", 6)
    path = tmp_path / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "7,0,2.5,\n8,0,2.")  # a row after the checkpoint, and one torn by a kill
    run_train("--out", tmp_path, "--steps", 6, "--resume")
    assert path.read_text() == whole
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert run_train("--out", tmp_path, "--steps", 8, "--resume") == 2


def test_refusals(run_train, run_sample, tmp_path, capsys):
    def refused(*words):
        assert run_train(*words) == 2
        return capsys.readouterr().err

    assert "no checkpoint" in refused("--out", tmp_path, "--resume")
    assert run_train("--out", tmp_path, "--steps", 2, "--seed", 3) == 0
    assert "--resume goes on" in refused("--out", tmp_path, "--steps", 2)
    assert "has seed 3; --resume cannot make it 4" in refused("--out", tmp_path, "--resume", "--seed", 4)
    assert run_train("--out", tmp_path, "--steps", 2, "--overwrite") == 0
    assert "got 0" in refused("--steps", 0)
    assert "--lr must be positive" in refused("--out", tmp_path / "b", "--lr", -1)
    assert "--device nonsense" in refused("--device", "nonsense")
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(b"nonsense")
    assert "cannot be read as a checkpoint" in refused("--out", tmp_path, "--resume")
    assert run_sample(tmp_path / "nowhere") == 2
    assert run_sample(tmp_path, "--n", 0) == 2


def test_a_loss_that_is_not_finite_stops_the_run(run_train, tmp_path, capsys):
    assert run_train("--out", tmp_path, "--steps", 50, "--lr", 1e30) == 2
    assert "try a lower --lr" in capsys.readouterr().err
    assert checkpoint.load(tmp_path)["step"] == 0  # the last good one


def fused_by_default():
    return fk.backends.resolve(fk.backends.requested(), torch.device("cpu")) != fk.backends.REFERENCE


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_compare(run_train, tmp_path, capsys, dtype, tolerance):
    status = run_train("--compare", "--out", tmp_path, "--steps", 20, "--dtype", dtype)
    if not fused_by_default():
        assert status == 2
        assert "nothing to compare" in capsys.readouterr().err
        return
    assert status == 0
    table = rows(tmp_path / "compare.csv")
    assert len(table) == 20
    for _, eager, other, difference in table:
        assert math.isclose(float(eager), float(other), rel_tol=tolerance)
        assert float(difference) <= tolerance
    assert "the two agree" in capsys.readouterr().out


def test_compare_fails_where_the_backends_differ(run_train, tmp_path, capsys, monkeypatch):
    if not fused_by_default():
        pytest.skip("the reference is the only backend")
    advance = trainer.Trainer.advance

    def wrong(self):
        loss = advance(self)
        return loss * 1.01 if fk.backends.requested() != fk.backends.REFERENCE else loss

    monkeypatch.setattr(trainer.Trainer, "advance", wrong)
    assert run_train("--compare", "--out", tmp_path, "--steps", 3) == 1
    assert "DIFFER" in capsys.readouterr().out
