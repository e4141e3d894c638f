"""Image flows: training them, their bits per dimension, and the pictures that they make."""

import argparse
import json
import math

import pytest
import torch
from torch import nn

import flowkernels as fk
from flowkernels.train import checkpoint, command, compare, config, cost, data, objective, report, trainer
from flowkernels.train.errors import CommandError

pytest.importorskip("sklearn")

FAST = ("--batch", 16, "--held-out", 20, "--samples", 2)
QUICK = {"batch": 16, "held_out": 20}


def made(flow, **changes):
    known = data.load("digits")
    chosen = {**config.SETTINGS[flow], **QUICK, **changes}
    return config.Config(data="digits", flow=flow, shape=known.shape, levels=known.levels, **chosen), known


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def no_cost(monkeypatch):
    """Without the processes that measure what a run costs."""
    monkeypatch.setattr(cost, "measure", lambda *_: {"step_ms": 1.0, "images_per_second": 2.0})


@pytest.mark.parametrize("flow", config.IMAGE_FLOWS)
def test_a_few_steps_of_each(run_words, run_sample, tmp_path, capsys, no_cost, flow):
    assert run_words("--flow", flow, "--out", tmp_path, "--steps", 4, *FAST) == 0
    result = json.loads((tmp_path / report.RESULT).read_text())
    assert 0 < result["bpd"] < 12
    assert result["bpd"] <= result["held_out_bpd"] + 0.2
    each = report.read_bpd(tmp_path)
    assert len(each) == 20
    assert math.isclose(sum(each) / 20, result["bpd"])
    assert f"± {result['bpd_error']:.4f} (2 draws of the noise" in capsys.readouterr().out
    if not report.figures.available():
        return
    for name in ("samples", "temperatures", "interpolations", "metrics"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    drawn = tmp_path / "drawn.png"
    assert run_sample(tmp_path, "--n", 3, "--temperature", 0.5, 1, "--out", drawn) == 0
    assert run_sample(tmp_path, "--temperature", 0.5, -1) == 2
    assert "--temperature must not be negative; got -1.0" in capsys.readouterr().err


def test_the_series_of_three_kinds(run_words, tmp_path, capsys, no_cost):
    flows = ("uva-simple", "uva-vardeq", "uva-multiscale")
    assert run_words("--flow", *flows, "--out", tmp_path, "--steps", 1, *FAST) == 0
    header, _, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert header == (
        "| data | flow | K | held-out bits/dim | standard error | minus the first | standard error of that | ms a step"
        " | samples/s |"
    )
    assert [line.split(" | ")[1] for line in lines] == list(flows)
    one, *others = json.loads((tmp_path / "table.json").read_text())
    assert "bpd_ahead" not in one
    for other in others:
        assert math.isclose(other["bpd_ahead"], other["bpd"] - one["bpd"])
        assert 0 < other["bpd_ahead_error"] < other["bpd_error"] * 2
    assert not report.figures.available() or (tmp_path / "bpd.png").exists()


@pytest.mark.parametrize("flow", ["uva-vardeq", "glow"])
def test_resuming_gives_the_bits_of_an_uninterrupted_run(run_words, tmp_path, assert_same_state, no_cost, flow):
    words = (
        "--flow",
        flow,
        *FAST,
        "--batch",
        700,
        "--epoch-decay",
        0.5,
        "--checkpoint-every",
        2,
    )  # an epoch is 2 steps
    if flow == "glow":
        words += ("--transforms", 1, "--hidden", 8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_words(*words, "--out", whole, "--steps", 4) == 0
    assert run_words(*words, "--out", parts, "--steps", 2) == 0
    assert run_words(*words, "--out", parts, "--steps", 4, "--resume") == 0
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
    assert_same_state(checkpoint.load(whole), checkpoint.load(parts))
    assert (whole / report.BPD).read_bytes() == (parts / report.BPD).read_bytes()


def test_the_recipe_of_the_tutorial():
    settings, known = made("uva-simple", batch=749)
    run = trainer.Trainer(settings, known, torch.device("cpu"))
    rates = []
    run.gradient_step = lambda: torch.zeros(()) * run.batches.next().sum()
    for p in run.model.parameters():
        p.grad = torch.full_like(p, 1e3)
    for _ in range(4):
        run.advance()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == [1e-3, 1e-3, 1e-3 * 0.99, 1e-3 * 0.99]
    total = torch.stack([p.grad.norm() for p in run.model.parameters()]).norm()
    assert math.isclose(total.item(), 1, rel_tol=1e-4)


def test_a_gradient_that_is_not_finite_never_reaches_the_parameters():
    run = trainer.Trainer(*made("uva-simple"), torch.device("cpu"))
    before = [p.detach().clone() for p in run.model.parameters()]
    parameter = next(run.model.parameters())
    parameter.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(CommandError, match="the norm of the gradient is nan at step 1: try a lower --lr"):
        run.advance()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before))


def test_autocast_trains_in_bfloat16_and_evaluates_in_float32():
    settings, known = made("uva-simple", amp=True)
    run = trainer.Trainer(settings, known, torch.device("cpu"))
    seen = []
    convolution = next(m for m in run.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert math.isfinite(run.advance())
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    run.held_out()
    assert set(seen) == {torch.float32}


class Known(nn.Module):
    """A model of bytes 0 and 1 whose log-weight given noise u is log p + log 2u: E[2u] = 1, so log p is exact."""

    LOG_P = -3.0

    def bits_per_dim(self, rows):
        u = torch.rand(len(rows), dtype=torch.float64)
        return -(self.LOG_P + (2 * u).log()) / (math.log(2) * rows[0].numel())


def test_more_draws_tighten_the_bound_to_the_likelihood_of_a_known_model():
    rows = torch.zeros(4000, 1, 2, 2)
    exact = -Known.LOG_P / (math.log(2) * 4)
    found = {k: objective.importance_weighted(Known(), rows, k).mean().item() for k in (1, 4, 200)}
    bound = -(Known.LOG_P + math.log(2) - 1) / (math.log(2) * 4)  # E log 2u = log 2 - 1
    assert math.isclose(found[1], bound, abs_tol=0.02)
    assert found[1] > found[4] + 0.03 > found[200] + 0.03
    assert math.isclose(found[200], exact, abs_tol=0.003)


def test_bits_of_a_flow_of_one_pixel_against_the_sum_of_its_probabilities():
    """Importance-weighted bits tend to -log2 of the density summed over each bin, of which all add to 1."""
    flow = fk.Flow([fk.nn.Dequantize(4)], event_shape=(1,))
    x = torch.arange(4, dtype=torch.uint8)[:, None]
    bits = objective.importance_weighted(flow, x, 4000)
    edges = torch.tensor([1e-9, 0.25, 0.5, 0.75, 1 - 1e-9], dtype=torch.float64)
    mass = torch.distributions.Normal(0, 1).cdf(torch.logit(edges)).diff()
    torch.testing.assert_close(bits, -mass.log2(), rtol=0, atol=0.02)
    one = torch.stack([flow.bits_per_dim(x) for _ in range(4000)]).mean(0)
    assert (one > bits).all()


def test_results_have_a_standard_error_over_pictures():
    run = trainer.Trainer(*made("uva-simple"), torch.device("cpu"))
    found = run.results(2)
    each = torch.tensor(found["bpd_each"], dtype=torch.float64)
    assert len(each) == 20
    assert math.isclose(found["bpd"], each.mean().item())
    assert math.isclose(found["bpd_error"], (each.std() / 20**0.5).item())
    assert found == run.results(2)  # the same noise each time


@pytest.mark.parametrize("flow", ["uva-simple", "uva-multiscale", "glow"])
def test_interpolations_start_and_end_at_the_pictures(flow):
    run = trainer.Trainer(*made(flow), torch.device("cpu"))
    run.advance()
    run.model.eval()
    one, other = run.measured[:3], run.measured[3:6]
    with torch.no_grad():
        between = report.interpolations(run.model, one, other, 5)
    assert between.shape == (3, 5, 1, 8, 8)
    assert torch.equal(between[:, 0], one)
    assert torch.equal(between[:, -1], other)


def test_costs_are_measured_in_a_process_of_its_own():
    found = cost.measure(made("uva-simple")[0], torch.device("cpu"), "reference")
    assert found["step_ms"] > 0
    assert found["images_per_second"] > 0
    assert 10 < found.get("peak_mb", 100) < 4000


def test_compare_prints_memory_and_speed_of_both_sides(run_words, tmp_path, capsys, no_cost):
    fused = fk.backends.resolve(fk.backends.requested(), torch.device("cpu")) != fk.backends.REFERENCE
    status = run_words("--flow", "uva-vardeq", "--compare", "--out", tmp_path, "--steps", 3, *FAST)
    assert status == (0 if fused else 2)
    assert not fused or capsys.readouterr().out.count("2.0 samples/s") == 2


def test_a_folder_of_images_is_trained_on(run_words, tmp_path, capsys, no_cost):
    Image = pytest.importorskip("PIL.Image")
    for number in range(24):
        pixels = torch.randint(256, (4, 4, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number:02}.png")
    out = tmp_path / "run"
    words = ("--data", tmp_path, "--flow", "uva-multiscale", "--out", out, "--steps", 1, "--batch", 4, "--samples", 1)
    assert run_words(*words) == 0
    assert f"uva-multiscale on {tmp_path.name} with" in capsys.readouterr().out
    assert checkpoint.load(out)["config"]["data"] == str(tmp_path)
    assert len(report.read_bpd(out)) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--flow", "glow", "--data", "moons"), "--flow glow needs pictures (digits, fashion-"),
        (("--flow", "uva-simple", "--transforms", 3), "--transforms means nothing for --flow uva-simple on digits"),
        (("--epoch-decay", 0.5), "--epoch-decay means nothing for --flow realnvp on digits; got 0.5"),
        (("--flow", "uva-simple", "--epoch-decay", 0), "--epoch-decay must be positive; got 0.0"),
        (("--flow", "uva-simple", "--held-out", 1), "--held-out must be at least 2; got 1"),
        (("--flow", "uva-simple", "--clip", -1), "--clip must be at least 0; got -1.0"),
        (("--flow", "glow", "--hidden", 3, 4), "--hidden must be one number for --flow glow; got (3, 4)"),
        (("--flow", "glow", "--scales", 4), "--flow glow cannot be built for digits: height and width must be"),
        (("--amp", "--dtype", "float64"), "--amp is for --dtype float32; got float64"),
        (("--amp", "--compare"), "--compare is of float32 or float64"),
        (("--data", "cifar10", "--data-dir", "/nowhere"), "no data_batch_1 or data_batch_1.bin in /nowhere"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(run_words, tmp_path, capsys, words, message):
    assert run_words(*words, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_known_are_named(capsys):
    with pytest.raises(SystemExit):
        parsed("--data", "nonsense")
    assert "'nonsense' is neither a folder of images nor one of digits, fashion-mnist" in capsys.readouterr().err


def test_the_command_to_go_on_names_every_option(tmp_path):
    given = parsed("--flow", "uva-simple", "--amp", "--clip", 2, "--held-out", 9, "--out", tmp_path)
    again = parsed(*command._resume_options(given).split())
    assert again.resume
    assert (again.flow, again.amp, again.clip, again.held_out) == (["uva-simple"], True, 2.0, 9)


def test_gradients_are_compared_by_their_norm_or_a_hundredth_of_the_whole():
    large, small = torch.tensor([3.0, 4.0]), torch.tensor([1e-6])
    assert math.isclose(compare.gradient_difference([large, small], [large * 1.01, small]), 0.01, rel_tol=1e-3)
    assert math.isclose(compare.gradient_difference([large, small], [large, 2 * small]), 1e-6 / 0.05, rel_tol=1e-3)
