"""One model, its optimiser, its batches and its random stream: everything that a step changes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .config import DTYPES, Config, build_model
from .data import Batches, Data
from .errors import CommandError
from .objective import objective

EVALUATION_SEED = 20_240_229  # held-out data always meet the same noise
EVALUATION_BATCH = 256
SLOWEST = 0.01  # of the learning rate, that falls linearly


class _RandomStream:
    """torch's global random state of a trainer's own: two trainers can take turns and draw as if alone."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        with self._fork():
            torch.manual_seed(seed)
            self.state = self._read()

    def _fork(self):
        return torch.random.fork_rng(self._cuda)

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Draw from this stream inside the block, and leave the global one as it was."""
        with self._fork():
            torch.set_rng_state(self.state[0])
            for device, state in zip(self._cuda, self.state[1:]):
                torch.cuda.set_rng_state(state, device)
            yield
            self.state = self._read()


class Trainer:
    """Trains a model by Adam on the objective of its data."""

    def __init__(self, config: Config, data: Data, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.dtype = DTYPES[config.dtype]
        self.data = data
        self.measured = data.held_out[: config.held_out]
        self.objective = objective(config, data)
        self.random = _RandomStream(config.seed, device)
        self.batches = Batches(len(data.train), config.batch, config.seed)
        with self.random.flowing():
            self.model: Any = build_model(config).to(device, self.dtype)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.step = 0

    def _placed(self, rows: Tensor) -> Tensor:
        """On the device; whole numbers stay bytes, which a dequantizing layer reads as they are, but for float64."""
        rows = rows if self.config.of_images else rows.flatten(1)
        return rows.to(self.device, rows.dtype if self.dtype == torch.float32 else self.dtype)

    def gradient_step(self) -> Tensor:
        """The loss of the next batch; its gradient is left in the parameters."""
        rows = self._placed(self.data.train[self.batches.next()])
        amp = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp)
        with self.random.flowing(), amp:
            loss = self.objective.loss(self.model, rows, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def advance(self) -> float:
        """One step; returns the loss of its batch, before the update.

        Raises:
            CommandError: for a loss or a clipped gradient that is not finite, before it reaches the parameters.
        """
        loss = self.gradient_step().item()
        self._check_finite("loss", loss)
        if self.config.clip:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            self._check_finite("norm of the gradient", norm.item())
        self.optimizer.param_groups[0]["lr"] = self.config.lr * self._pace()
        self.optimizer.step()
        self.step += 1
        return loss

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise CommandError(f"the {name} is {value} at step {self.step + 1}: try a lower --lr")

    def _pace(self) -> float:
        """The share of the learning rate at this step."""
        falling = (self.config.epoch_decay or 1.0) ** self.batches.epoch
        return falling * (max(SLOWEST, 1 - self.step / self.config.decay) if self.config.decay else 1.0)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Noise that is the same each time, and layers that learn nothing from what they see."""
        self.model.eval()
        try:
            with _RandomStream(EVALUATION_SEED, self.device).flowing(), torch.no_grad():
                yield
        finally:
            self.model.train()

    def held_out(self) -> float:
        """The mean of the objective over held-out data, with noise that is the same each time."""
        total = torch.zeros((), dtype=torch.float64)
        with self._evaluating():
            for rows in self.measured.split(EVALUATION_BATCH):
                total += self.objective.held_out(self.model, self._placed(rows)).double().sum().cpu()
        return total.item() / len(self.measured)

    def results(self, samples: int) -> dict[str, Any]:
        """What is reported of the model on held-out data, by name, with noise that is the same each time."""
        held_out = self.held_out()
        with self._evaluating():
            more = self.objective.results(self.model, self._placed(self.measured), samples)
        return {f"held_out_{self.objective.unit}": held_out, **more}

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on bit for bit."""
        return {
            "config": self.config.plain(),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.state,
            "loader": self.batches.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.state = [s.cpu() for s in state["random"]]
        self.batches.load_state_dict(state["loader"])
