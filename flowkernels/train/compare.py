"""Eager and fused training from one seed, step by step in turn."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time

import torch

from .. import backends
from . import cost, figures
from .config import Config
from .data import Data
from .errors import CommandError
from .progress import Progress
from .trainer import Trainer

# Largest relative difference allowed of the losses at any step, and of the gradients.
TOLERANCES = {"float32": (1e-3, 1e-5), "float64": (1e-9, 1e-9)}
SMALL = 0.01


@dataclasses.dataclass
class Side:
    """One of the two runs: the request for a backend that it is made under, and what it measured."""

    name: str
    backend: str
    trainer: Trainer
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def advance(self) -> None:
        start = time.perf_counter()
        with backends.backend(self.backend):
            self.losses.append(self.trainer.advance())
        self.seconds.append(time.perf_counter() - start)

    def held_out(self) -> float:
        with backends.backend(self.backend):
            return self.trainer.held_out()

    def gradients(self, state: dict) -> list[torch.Tensor]:
        """The gradients of the step that follows a checkpoint."""
        self.trainer.load_state_dict(state)
        with backends.backend(self.backend):
            self.trainer.gradient_step()
        return [p.grad.clone() for p in self.trainer.model.parameters() if p.grad is not None]


def relative_difference(eager: torch.Tensor, fused: torch.Tensor) -> float:
    """Norm of the difference over the norm of the eager value; 0 where they are equal, even both 0."""
    return 0.0 if torch.equal(eager, fused) else ((fused - eager).norm() / eager.norm()).item()


def gradient_difference(eager: list[torch.Tensor], fused: list[torch.Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to its norm or to `SMALL` of the whole gradient's.

    The gradient of a single number, such as a coupling's bound, is a sum of terms that may cancel to almost nothing.
    """
    whole = torch.stack([gradient.norm() for gradient in eager]).norm()
    pairs = zip(eager, fused)
    return max(((f - e).norm() / torch.maximum(e.norm(), SMALL * whole)).item() for e, f in pairs)


def compare(config: Config, known: Data, device: torch.device, steps: int, out: pathlib.Path) -> bool:
    """Train eager and fused in turn, print and write how they differ, and of image flows what each costs.

    Writes compare.csv and, with matplotlib, compare.png to `out`.

    Returns:
        Whether losses and gradients agree within `TOLERANCES`.
    """
    request = backends.NAMES[backends.requested()]
    ran = backends.NAMES[backends.resolve(backends.requested(), device)]
    if ran == "reference":
        raise CommandError(_nothing_fused(device))
    eager = Side("eager", "reference", Trainer(config, known, device))
    fused = Side(f"fused ({ran})", request, Trainer(config, known, device))
    _train_in_turn(eager, fused, steps)
    curve, gradient = _report(eager, fused, config.dtype)
    _write(out, eager, fused, curve, config)
    allowed_curve, allowed_gradient = TOLERANCES[config.dtype]
    agree = max(curve) <= allowed_curve and gradient <= allowed_gradient
    print("the two agree" if agree else "the two DIFFER by more than is allowed")
    return agree


def _nothing_fused(device: torch.device) -> str:
    if backends.requested() == backends.REFERENCE:
        return "there is nothing to compare: FLOWKERNELS_BACKEND asks for the reference, which is the eager side"
    reasons = "; ".join(f"{name}: {why}" for name, why in backends.problems(device).items() if why)
    return f"there is nothing to compare: the reference is the only backend on {device} ({reasons})"


def _train_in_turn(eager: Side, fused: Side, steps: int) -> None:
    progress, unit = Progress(0, steps), eager.trainer.objective.unit
    try:
        for step in range(1, steps + 1):
            for side in (eager, fused) if step % 2 else (fused, eager):  # what disturbs the machine disturbs both
                side.advance()
            progress.show(step, f"eager {eager.losses[-1]:.4f}, fused {fused.losses[-1]:.4f} {unit}")
    finally:
        progress.close()


def _report(eager: Side, fused: Side, dtype: str) -> tuple[list[float], float]:
    """Print the comparison; return the relative differences of the losses, and that of the gradients."""
    state = eager.trainer.state_dict()
    held_out = [side.held_out() for side in (eager, fused)]
    curve = [
        relative_difference(torch.tensor(e, dtype=torch.float64), torch.tensor(f, dtype=torch.float64))
        for e, f in zip(eager.losses, fused.losses)
    ]
    gradient = gradient_difference(eager.gradients(state), fused.gradients(state))
    allowed_curve, allowed_gradient = TOLERANCES[dtype]
    held_out_name = f"held-out {eager.trainer.objective.unit}"
    print(f"{'':14}{'loss, last step':>16}{held_out_name:>19}{'time':>10}{'median step':>13}")
    for side, value in zip((eager, fused), held_out):
        median = statistics.median(side.seconds)
        print(f"{side.name:14}{side.losses[-1]:16.6f}{value:19.6f}{sum(side.seconds):9.2f}s{median * 1e3:11.2f}ms")
    if eager.trainer.config.of_images:
        _report_costs(eager, fused)
    worst = max(range(len(curve)), key=curve.__getitem__)
    print(
        f"losses over {len(curve)} steps: largest relative difference {max(curve):.1e}, at step {worst + 1}"
        f" (allowed {allowed_curve:.0e})"
    )
    print(f"gradients from one checkpoint: largest relative difference {gradient:.1e} (allowed {allowed_gradient:.0e})")
    return curve, gradient


def _report_costs(eager: Side, fused: Side) -> None:
    """Print what each needs alone in a process: memory, and time for samples."""
    found = [(side, cost.measure(side.trainer.config, side.trainer.device, side.backend)) for side in (eager, fused)]
    for side, values in found:
        memory = f"{values['peak_mb']:8.0f} MB at most, " if "peak_mb" in values else ""
        print(f"{side.name:14}{memory}{values['step_ms']:.2f} ms a step, {values['images_per_second']:.1f} samples/s")


def _write(out: pathlib.Path, eager: Side, fused: Side, curve: list[float], config: Config) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows, unit = zip(eager.losses, fused.losses, curve), eager.trainer.objective.unit
    lines = [f"{step},{e!r},{f!r},{d!r}\n" for step, (e, f, d) in enumerate(rows, 1)]
    (out / "compare.csv").write_text(f"step,eager_{unit},fused_{unit},relative_difference\n" + "".join(lines))
    if figures.available():
        title = f"{config.title}, {config.dtype}: eager and fused from one seed"
        losses = {eager.name: eager.losses, fused.name: fused.losses}
        figures.comparison(
            out / "compare.png", title, eager.trainer.objective.quantity, losses, curve, TOLERANCES[config.dtype][0]
        )
