"""Several runs by one command, runs on points and on densities, and options that do not go together."""

import json

import pytest
import torch

import flowkernels as fk
from flowkernels.train import checkpoint, command, config, report, series

FAST = ("--steps", 6, "--batch", 32, "--samples", 200)


def results(root):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(root.glob("*/result.json"))}


def test_a_series_of_fits_to_densities(run_words, tmp_path, capsys):
    words = ("--data", "u1", "bimodal", "--flow", "planar", "--depth", 0, 2, "--out", tmp_path, *FAST)
    assert run_words(*words) == 0
    assert set(results(tmp_path)) == {f"{data}-depth{depth}" for data in ("u1", "bimodal") for depth in (0, 2)}
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[0] == "| data | flow | K | KL | ms a step |"
    assert table.count("\n") == 2 + 4
    assert table in capsys.readouterr().out
    assert len(json.loads((tmp_path / "table.json").read_text())) == 4
    if report.figures.available():
        assert (tmp_path / "densities.png").read_bytes().startswith(b"\x89PNG")


def test_a_series_goes_on_where_it_was_stopped(run_words, tmp_path, capsys):
    words = ("--data", "u2", "--flow", "radial", "--depth", 1, 2, 3, "--out", tmp_path, *FAST)
    assert run_words(*words) == 0
    whole = (tmp_path / "table.json").read_text()
    before = checkpoint.load(tmp_path / "depth1")
    (tmp_path / "depth3" / checkpoint.CHECKPOINT).unlink()  # as if the last run had not begun
    (tmp_path / "depth3" / report.RESULT).unlink()
    assert run_words(*words) == 2
    assert "depth1/checkpoint.pt exists: --resume" in capsys.readouterr().err
    assert run_words(*words, "--resume") == 0
    assert capsys.readouterr().out.count("finished before: KL") == 2
    again = (tmp_path / "table.json").read_text()
    assert [r["kl"] for r in json.loads(again)] == [r["kl"] for r in json.loads(whole)]
    assert torch.equal(before["model"]["layers.0.beta"], checkpoint.load(tmp_path / "depth1")["model"]["layers.0.beta"])


def test_seeds_become_a_mean_and_a_deviation(run_words, tmp_path, capsys):
    pytest.importorskip("sklearn")
    words = ("--flow", "planar-vae", "--depth", 0, 1, "--seed", 1, 2, "--latent", 3, "--hidden", 8, "--out", tmp_path)
    assert run_words(*words, *FAST) == 0
    header, _, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert header == "| data | flow | K | -ELBO | -log p(x) | gap | ms a step |"
    assert [line.count("±") for line in lines] == [4, 4]
    found = results(tmp_path)
    assert set(found) == {"depth0-seed1", "depth0-seed2", "depth1-seed1", "depth1-seed2"}
    assert not report.figures.available() or (tmp_path / "evidence.png").exists()
    assert found["depth0-seed1"]["elbo"] != found["depth0-seed2"]["elbo"]
    assert "Rezende" not in capsys.readouterr().out
    assert series.spread([1.0, 3.0], -1) == "-2.000 ± 1.414"


@pytest.mark.parametrize("flow", ["planar", "radial", "realnvp", "nsf"])
def test_points_and_their_samples(run_words, run_sample, tmp_path, flow):
    assert run_words("--data", "rings", "--flow", flow, "--out", tmp_path, *FAST) == 0
    assert (tmp_path / "metrics.csv").read_text().startswith("step,epoch,train_nats,held_out_nats\n")
    result = json.loads((tmp_path / report.RESULT).read_text())
    assert result["flow"] == flow
    assert 2 < result["held_out_nats"] < 20
    if report.figures.available():
        assert (tmp_path / "samples.png").exists()
        assert run_sample(tmp_path, "--n", 9, "--out", tmp_path / "drawn.png") == 0
        assert (tmp_path / "drawn.png").exists()


def test_an_autoencoder_of_mnist_prints_the_paper_s_numbers_and_samples(run_words, run_sample, tmp_path, capsys):
    for name, n in (("train", 40), ("t10k", 5)):
        header = bytes((0, 0, 8, 3)) + b"".join(size.to_bytes(4, "big") for size in (n, 4, 4))
        pixels = torch.randint(256, (n * 16,)).tolist()
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(pixels))
    words = ("--data", "mnist", "--data-dir", tmp_path, "--flow", "radial-vae", "--binarize", "threshold")
    assert run_words(*words, "--hidden", 8, "--latent", 2, "--out", tmp_path / "out", *FAST) == 0
    out = capsys.readouterr().out
    assert "85.7, 85.1 nats" in out
    assert "gap" in out
    if report.figures.available():
        assert run_sample(tmp_path / "out", "--n", 3, "--out", tmp_path / "drawn.png") == 0


def test_fits_learn(run_words, tmp_path):
    """A flow comes nearer to a density of two modes than a diagonal normal, whose divergence is at least log 2."""
    words = ("--data", "bimodal", "--flow", "planar", "--depth", 0, 8, "--lr", 0.02, "--batch", 128, "--steps", 400)
    assert run_words(*words, "--out", tmp_path) == 0
    found = results(tmp_path)
    assert found["depth0"]["kl"] > 0.6
    assert found["depth8"]["kl"] < found["depth0"]["kl"] - 0.2


def test_resuming_a_fit_gives_the_bits_of_an_uninterrupted_one(run_words, tmp_path, assert_same_state):
    words = ("--data", "u1", "--flow", "planar", "--batch", 32, "--samples", 100, "--anneal", 20, "--decay", 20)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_words(*words, "--out", whole, "--steps", 12) == 0
    assert run_words(*words, "--out", parts, "--steps", 7) == 0
    assert run_words(*words, "--out", parts, "--steps", 12, "--resume") == 0
    assert_same_state(checkpoint.load(whole), checkpoint.load(parts))
    one, other = (json.loads((out / report.RESULT).read_text())["kl"] for out in (whole, parts))
    assert one == other


def test_compare_trains_fits_too(run_words, tmp_path, capsys):
    words = ("--data", "u1", "--flow", "planar", "--batch", 64, "--steps", 10, "--compare", "--out", tmp_path)
    fused = fk.backends.resolve(fk.backends.requested(), torch.device("cpu")) != fk.backends.REFERENCE
    assert run_words(*words) == (0 if fused else 2)
    assert not fused or "the two agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--flow", "planar-vae", "--data", "moons"), "--flow planar-vae needs pictures (digits, fashion-"),
        (("--flow", "planar", "--data", "u1", "--transforms", 3), "--transforms means nothing for --flow planar on u1"),
        (("--flow", "planar", "--data", "moons", "--anneal", 3), "--anneal means nothing for --flow planar on moons"),
        (("--data", "rings", "--depth", 3), "--depth means nothing for --flow realnvp on rings; got 3"),
        (("--flow", "planar", "--data", "u1", "--depth", 2, -1), "--depth must be at least 0; got -1"),
        (("--flow", "planar", "--data", "u1", "--samples", 0), "--samples must be positive; got 0"),
        (("--flow", "planar", "--data", "u1", "--depth", 1, 2, "--compare"), "--compare trains one flow"),
        (("--flow", "planar", "--data", "u1", "--batch", 100_000), "--batch must be between 1 and the 65536"),
        (("--data", "mnist",), "--data-dir"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(run_words, tmp_path, capsys, words, message):
    assert run_words(*words, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_the_annealing_follows_from_the_steps_and_survives_resuming(run_words, tmp_path):
    assert config.annealing("planar", 4000) == 2000
    assert config.annealing("planar-vae", 500_000) == 10_000
    words = ("--data", "u1", "--flow", "planar", "--out", tmp_path, *FAST)
    assert run_words(*words) == 0
    assert checkpoint.load(tmp_path)["config"]["anneal"] == 3
    assert run_words(*words, "--steps", 10, "--resume") == 0
    assert checkpoint.load(tmp_path)["config"]["anneal"] == 3


def test_the_command_to_go_on_with_a_series(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--data", "u1", "u2", "--flow", "planar", "--depth", "2", "8", "--lr", "0.5", "--out", str(tmp_path)]
    words = command._resume_options(parser.parse_args(given)).split()
    again = parser.parse_args(words)
    assert again.resume
    assert (again.data, again.flow, again.depth, again.lr) == (["u1", "u2"], ["planar"], [2, 8], 0.5)
