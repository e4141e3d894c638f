"""Neural posterior estimation by the sbi package with its neural spline flow, as it is and after `fk.accelerate`.

    pip install sbi
    python examples/sbi_posterior.py

From one state_dict it compares log-densities and the losses of 50 steps on the same batches, trains both with sbi's own
trainer, asks a classifier to tell their posteriors apart (C2ST; 0.5: it cannot), and times the steps.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings

import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st

import flowkernels as fk

STEPS, BATCH = 50, 200
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def two_moons(theta: torch.Tensor) -> torch.Tensor:
    """The benchmark's simulator: a crescent around a point that two parameters give."""
    angle = torch.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), 1)
    sums = torch.stack((-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]), 1)
    return crescent + sums / 2**0.5


def steps(net: torch.nn.Module, theta: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """The losses of 50 steps of Adam, and how long each took."""
    optimizer, order = torch.optim.Adam(net.parameters(), lr=5e-4), torch.Generator().manual_seed(1)
    losses, seconds = [], []
    for _ in range(STEPS):
        batch = torch.randint(len(theta), (BATCH,), generator=order)
        start = time.perf_counter()
        loss = net.loss(theta[batch], x[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.detach())
    return torch.stack(losses), seconds


def posterior_samples(theta: torch.Tensor, x: torch.Tensor, accelerated: bool) -> tuple[torch.Tensor, float]:
    """Samples of the posterior at the origin after sbi's own training, and how long that took."""

    def build(theta, x):
        net = posterior_nn("nsf")(theta, x)
        if accelerated:
            fk.accelerate(net)
        return net

    torch.manual_seed(2)
    inference = NPE(BoxUniform(-torch.ones(2), torch.ones(2)), density_estimator=build, show_progress_bars=False)
    start = time.perf_counter()
    inference.append_simulations(theta, x).train(max_num_epochs=30)
    seconds = time.perf_counter() - start
    return inference.build_posterior().sample((2000,), x=torch.zeros(1, 2), show_progress_bars=False), seconds


def main() -> None:
    torch.manual_seed(0)
    theta = 2 * torch.rand(5000, 2) - 1
    x = two_moons(theta)
    net = posterior_nn("nsf")(theta, x)
    faster = copy.deepcopy(net)
    print(fk.accelerate(faster))
    faster.load_state_dict(net.state_dict())

    theirs, ours = (n.log_prob(theta[None, :1000], x[:1000]) for n in (net, faster))
    print(f"log_prob: largest relative difference {((ours - theirs) / (1 + theirs.abs())).abs().max():.1e}")
    inputs = [(copy.deepcopy(n), theta, x) for n in (net, faster)]
    (loss, slow), (fast_loss, fast) = steps(*inputs[0]), steps(*inputs[1])
    print(f"losses of {STEPS} steps: largest difference {(loss - fast_loss).abs().max():.1e}")
    slow, fast = sorted(slow)[STEPS // 2], sorted(fast)[STEPS // 2]
    print(f"a step: {1e3 * slow:.1f} ms as it is, {1e3 * fast:.1f} ms accelerated ({slow / fast:.1f} times as fast)")
    (samples, slow), (fast_samples, fast) = (posterior_samples(theta, x, a) for a in (False, True))
    print(f"NPE.train: {slow:.1f} s as it is, {fast:.1f} s accelerated")
    print(f"C2ST of the two posteriors: {c2st(samples, fast_samples).item():.3f}")


if __name__ == "__main__":
    main()
