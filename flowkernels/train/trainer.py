"""One flow, its optimiser, its batches and its random stream: everything that a step changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .config import DTYPES, Config, build_flow
from .data import Batches, Pictures

EVALUATION_SEED = 20_240_229  # held-out pictures are always dequantized with the same noise
EVALUATION_BATCH = 1024


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
    """Trains by Adam on the bits per dimension of uniformly dequantized pictures."""

    def __init__(self, config: Config, pictures: Pictures, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.dtype = DTYPES[config.dtype]
        self.pictures = pictures
        self.random = _RandomStream(config.seed, device)
        self.batches = Batches(len(pictures.train), config.batch, config.seed)
        with self.random.flowing():
            self.flow = build_flow(config).to(device, self.dtype)
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=config.lr, fused=True)
        self.step = 0

    def _pixels(self, rows: Tensor) -> Tensor:
        return rows.to(self.device, self.dtype)

    def gradient_step(self) -> Tensor:
        """The mean bits per dimension of the next batch; its gradient is left in the parameters."""
        x = self._pixels(self.pictures.train[self.batches.next()])
        with self.random.flowing():
            loss = self.flow.bits_per_dim(x).mean()
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def advance(self) -> float:
        """One step; returns the bits per dimension of its batch, before the update."""
        loss = self.gradient_step()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def held_out_bpd(self) -> float:
        """Mean bits per dimension of the held-out pictures, with noise that is the same each time."""
        total = torch.zeros((), dtype=torch.float64)
        with _RandomStream(EVALUATION_SEED, self.device).flowing():
            for rows in self.pictures.held_out.split(EVALUATION_BATCH):
                total += self.flow.bits_per_dim(self._pixels(rows)).double().sum().cpu()
        return total.item() / len(self.pictures.held_out)

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on bit for bit."""
        return {
            "config": self.config.plain(),
            "step": self.step,
            "model": self.flow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.state,
            "loader": self.batches.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        self.flow.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.state = [s.cpu() for s in state["random"]]
        self.batches.load_state_dict(state["loader"])
