"""What a finished run leaves: result.json, a line, and figures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from typing import Any

import torch

from .. import backends
from . import checkpoint, cost, figures, plane
from .config import Config
from .objective import FreeEnergy, NegativeElbo
from .trainer import Trainer

RESULT = "result.json"
SHOWN = 64
DRAWS, VAE_SAMPLES, NOISE_SAMPLES = 100_000, 1000, 8
SAMPLES_HELP = (
    f"{NOISE_SAMPLES} draws of the dequantizing noise for each picture; vae: {VAE_SAMPLES} of the latents; {DRAWS} for"
    " a KL"
)
BPD = "bpd.csv"
TEMPERATURES = (0.5, 0.7, 0.8, 0.9, 1.0)
PAIRS, STAGES = 6, 8  # of interpolations between held-out pictures
PAPER = (
    "Rezende and Mohamed (2015), MNIST, -ln p(x) of test data with K = 10, 20, 40, 80 planar maps: at most 87.5, 86.5,"
    " 85.7, 85.1 nats"
)


def described(trainer: Trainer) -> str:
    """What is about to be trained, in one line."""
    config, held_out = trainer.config, len(trainer.measured)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    size = f"{len(trainer.data.train)} to train on, {held_out} held out"
    if isinstance(trainer.objective, FreeEnergy):
        size = "by its energy"
    elif config.levels:
        size += f", {config.levels} levels"
    notes = ["bfloat16 autocast" if config.amp else config.dtype, f"on {trainer.device}"]
    if config.binarize is not None:
        notes.append("pixels drawn from grey levels" if config.binarize == "sample" else "pixels at least 1/2 are 1")
    if config.anneal:
        notes.append(f"beta = min(1, 0.01 + t/{config.anneal})")
    return f"{config.title} with {parameters:,} parameters ({size}), {', '.join(notes)}"


def forget(out: pathlib.Path) -> None:
    """Remove the result of an earlier run."""
    for name in (RESULT, BPD):
        (out / name).unlink(missing_ok=True)


def write(trainer: Trainer, out: pathlib.Path, samples: int | None, seconds: list[float]) -> None:
    """Evaluate the model, print and write the result with what each step took, and draw the figures."""
    result = read(out)
    if result.get("steps") == trainer.step and result.get("samples") == (samples or _samples(trainer)):
        print(f"finished before: {_sentence(result)}")
        return
    samples = samples or _samples(trainer)
    if isinstance(trainer.objective, NegativeElbo):
        print(f"estimating log p(x) of {len(trainer.data.held_out)} pictures by {samples} samples each", flush=True)
    place = {name: getattr(trainer.config, name) for name in ("data", "flow", "depth", "seed")}
    pace = {"ms_per_step": statistics.median(seconds) * 1e3} if seconds else {}
    result = {**place, "steps": trainer.step, "samples": samples, **pace, **trainer.results(samples)}
    if each := result.pop("bpd_each", None):
        rows = [f"{number},{value!r}\n" for number, value in enumerate(each)]
        checkpoint.replace_text(out / BPD, "picture,bpd\n" + "".join(rows))
    if trainer.config.of_images:
        result |= cost.measure(trainer.config, trainer.device, backends.NAMES[backends.requested()])
    checkpoint.replace_text(out / RESULT, json.dumps(result, indent=1) + "\n")
    print(f"{_sentence(result)}; {len(seconds)} steps in {sum(seconds):.1f} s{_pace(result)}")
    if trainer.config.data == "mnist" and isinstance(trainer.objective, NegativeElbo):
        print(PAPER)
    if figures.available():
        _draw(trainer, out)


def read(out: pathlib.Path) -> dict[str, Any]:
    """The result of the run in a directory, empty if it has none."""
    path = out / RESULT
    return json.loads(path.read_text()) if path.is_file() else {}


def _samples(trainer: Trainer) -> int:
    if isinstance(trainer.objective, FreeEnergy):
        return DRAWS
    return VAE_SAMPLES if isinstance(trainer.objective, NegativeElbo) else NOISE_SAMPLES


def _pace(result: dict[str, Any]) -> str:
    """What is known of the cost, as the end of a sentence."""
    words = {"ms_per_step": "{:.2f} ms a step", "peak_mb": "{:.0f} MB at most", "images_per_second": "{:.1f} samples/s"}
    return "".join(f", {form.format(result[name])}" for name, form in words.items() if name in result)


def read_bpd(out: pathlib.Path) -> list[float]:
    """Bits per dimension of each held-out picture, in their order."""
    return [float(line.split(",")[1]) for line in (out / BPD).read_text().splitlines()[1:]]


def _sentence(result: dict[str, Any]) -> str:
    if "kl" in result:
        return f"KL {result['kl']:.4f} ± {result['kl_error']:.4f} nats ({result['samples']} draws)"
    if "elbo" in result:
        return (
            f"held out: -ELBO {-result['elbo']:.3f}, -log p(x) at most {-result['log_likelihood']:.3f}"
            f" ({result['samples']} importance samples), gap {result['gap']:.3f} nats"
        )
    if "bpd" in result:
        return (
            f"held-out bits per dimension {result['bpd']:.4f} ± {result['bpd_error']:.4f} ({result['samples']} draws of"
            f" the noise; {result['held_out_bpd']:.4f} by one)"
        )
    return f"held-out negative log-likelihood {result['held_out_nats']:.4f} nats"


def pictures(model: Any, config: Config, n: int, **how: Any) -> torch.Tensor:
    """n samples as levels of grey, the probabilities of a model of binary pictures included."""
    samples = model.sample(n, **how)
    return samples.detach() * (config.levels - 1) if config.binarize else samples


def interpolations(model: Any, one: torch.Tensor, other: torch.Tensor, stages: int) -> torch.Tensor:
    """Pictures on the way from each of `one` to each of `other`, all latents going straight: (B, stages, ...)."""
    starts, ends = model.encode(one), model.encode(other)
    shares = torch.linspace(0, 1, stages).tolist()
    return torch.stack([model.decode([a.lerp(b, t) for a, b in zip(starts, ends)]) for t in shares], 1)


@torch.no_grad()
def _draw(trainer: Trainer, out: pathlib.Path) -> None:
    config = trainer.config
    trainer.model.eval()
    with trainer.random.flowing():
        drawn = _draw_pictures(trainer, out) if config.levels else _draw_plane(trainer, out)
    trainer.model.train()
    curves = checkpoint.read_metrics(out / "metrics.csv")
    figures.curves(out / "metrics.png", config.title, trainer.objective.quantity, *curves)
    print(f"figures: {', '.join(str(out / name) for name in (*drawn, 'metrics.png'))}")


def _draw_pictures(trainer: Trainer, out: pathlib.Path) -> tuple[str, ...]:
    config, model = trainer.config, trainer.model
    sheet = figures.Sheet(config.shape, config.levels)
    samples = pictures(model, config, SHOWN)
    titled = {"training data": trainer.data.train[:SHOWN], f"samples after {trainer.step} steps": samples}
    figures.sheets(out / "samples.png", titled, sheet)
    if not config.of_images:
        return ("samples.png",)
    warm = {f"temperature {t:g}": model.sample(16, temperature=t) for t in TEMPERATURES}
    figures.sheets(out / "temperatures.png", warm, sheet, side=2.4)
    ends = trainer.measured[: 2 * PAIRS].to(trainer.device)
    half = len(ends) // 2
    between = interpolations(model, ends[:half], ends[half : 2 * half], STAGES).flatten(0, 1)
    wide = dataclasses.replace(sheet, columns=STAGES)
    figures.sheets(out / "interpolations.png", {"between held-out pictures": between}, wide)
    return "samples.png", "temperatures.png", "interpolations.png"


def _draw_plane(trainer: Trainer, out: pathlib.Path) -> tuple[str, ...]:
    config, known = trainer.config, trainer.data
    title = config.flow + ("" if config.depth is None else f", K = {config.depth}")
    samples = trainer.model.sample(len(known.held_out))
    row = {config.data: plane.truth(known), title: plane.density(trainer.model), "samples": samples.cpu()}
    plane.panels(out / "samples.png", [row])
    return ("samples.png",)
