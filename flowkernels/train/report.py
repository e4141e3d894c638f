"""What a finished run leaves: result.json, a line, and figures."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch

from . import checkpoint, figures, plane
from .config import Config
from .data import PICTURES
from .objective import FreeEnergy, NegativeElbo
from .trainer import Trainer

RESULT = "result.json"
SHOWN = 64
DRAWS, IMPORTANCE_SAMPLES = 100_000, 1000
SAMPLES_HELP = f"{IMPORTANCE_SAMPLES} importance samples for each picture, or {DRAWS} draws for a KL"
PAPER = (
    "Rezende and Mohamed (2015), MNIST, -ln p(x) of test data with K = 10, 20, 40, 80 planar maps: at most 87.5, 86.5,"
    " 85.7, 85.1 nats"
)


def described(trainer: Trainer) -> str:
    """What is about to be trained, in one line."""
    config, held_out = trainer.config, len(trainer.data.held_out)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    size = f"{len(trainer.data.train)} to train on, {held_out} held out"
    if isinstance(trainer.objective, FreeEnergy):
        size = "by its energy"
    elif config.data in PICTURES:
        size += f", {config.levels} levels"
    notes = [config.dtype, f"on {trainer.device}"]
    if config.binarize is not None:
        notes.append("pixels drawn from grey levels" if config.binarize == "sample" else "pixels at least 1/2 are 1")
    if config.anneal:
        notes.append(f"beta = min(1, 0.01 + t/{config.anneal})")
    return f"{config.title} with {parameters:,} parameters ({size}), {', '.join(notes)}"


def forget(out: pathlib.Path) -> None:
    """Remove the result of an earlier run."""
    (out / RESULT).unlink(missing_ok=True)


def write(trainer: Trainer, out: pathlib.Path, samples: int | None, steps: int, seconds: float) -> None:
    """Evaluate the model, print and write the result, and draw the figures."""
    result = read(out)
    if result.get("steps") == trainer.step and result.get("samples") == (samples or _samples(trainer)):
        print(f"finished before: {_sentence(result)}")
        return
    samples = samples or _samples(trainer)
    if isinstance(trainer.objective, NegativeElbo):
        print(f"estimating log p(x) of {len(trainer.data.held_out)} pictures by {samples} samples each", flush=True)
    place = {name: getattr(trainer.config, name) for name in ("data", "flow", "depth", "seed")}
    pace = {"ms_per_step": seconds / steps * 1e3} if steps else {}
    result = {**place, "steps": trainer.step, "samples": samples, **pace, **trainer.results(samples)}
    checkpoint.replace_text(out / RESULT, json.dumps(result, indent=1) + "\n")
    each = f", {pace['ms_per_step']:.2f} ms a step" if pace else ""
    print(f"{_sentence(result)}; {steps} steps in {seconds:.1f} s{each}")
    if trainer.config.data == "mnist" and isinstance(trainer.objective, NegativeElbo):
        print(PAPER)
    if figures.available():
        _draw(trainer, out)


def read(out: pathlib.Path) -> dict[str, Any]:
    """The result of the run in a directory, empty if it has none."""
    path = out / RESULT
    return json.loads(path.read_text()) if path.is_file() else {}


def _samples(trainer: Trainer) -> int:
    return DRAWS if isinstance(trainer.objective, FreeEnergy) else IMPORTANCE_SAMPLES


def _sentence(result: dict[str, Any]) -> str:
    if "kl" in result:
        return f"KL {result['kl']:.4f} ± {result['kl_error']:.4f} nats ({result['samples']} draws)"
    if "elbo" in result:
        return (
            f"held out: -ELBO {-result['elbo']:.3f}, -log p(x) at most {-result['log_likelihood']:.3f}"
            f" ({result['samples']} importance samples), gap {result['gap']:.3f} nats"
        )
    if "held_out_bpd" in result:
        return f"held-out bits per dimension {result['held_out_bpd']:.4f}"
    return f"held-out negative log-likelihood {result['held_out_nats']:.4f} nats"


def pictures(model: Any, config: Config, n: int, **how: Any) -> torch.Tensor:
    """n samples as levels of grey, the probabilities of a model of binary pictures included."""
    samples = model.sample(n, **how)
    return samples.detach() * (config.levels - 1) if config.binarize else samples


def _draw(trainer: Trainer, out: pathlib.Path) -> None:
    config, known = trainer.config, trainer.data
    if config.data in PICTURES:
        with trainer.random.flowing():
            samples = pictures(trainer.model, config, SHOWN)
        titled = {"training data": known.train[:SHOWN], f"samples after {trainer.step} steps": samples}
        figures.sheets(out / "samples.png", titled, config.shape, config.levels)
    else:
        title = config.flow + ("" if config.depth is None else f", K = {config.depth}")
        with trainer.random.flowing():
            samples = trainer.model.sample(len(known.held_out))
        row = {config.data: plane.truth(known), title: plane.density(trainer.model), "samples": samples.cpu()}
        plane.panels(out / "samples.png", [row])
    curves = checkpoint.read_metrics(out / "metrics.csv")
    figures.curves(out / "metrics.png", config.title, trainer.objective.quantity, *curves)
    print(f"figures: {out / 'samples.png'}, {out / 'metrics.png'}")
