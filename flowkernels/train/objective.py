"""What a run minimises, and what it reports of the model that comes of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .config import Config
from .data import Data
from .targets import Target

ANNEAL_FROM = 0.01  # beta_t = min(1, 0.01 + t / anneal), Rezende and Mohamed (2015), section 6.1
EVALUATION_ROWS = 8192  # at once
IMPORTANCE_ROWS = 256


class Objective:
    """Maximum likelihood: the negative log-density of data, in bits per dimension where they are discrete."""

    def __init__(self, config: Config, data: Data) -> None:
        self.config = config
        self.data = data

    @property
    def unit(self) -> str:
        """Of the loss, short."""
        return "bpd" if self.config.levels else "nats"

    @property
    def quantity(self) -> str:
        """The loss in words."""
        return "bits per dimension" if self.config.levels else "negative log-likelihood, nats"

    def loss(self, model: nn.Module, rows: Tensor, step: int) -> Tensor:
        """The mean over a batch, at the step that comes after `step` others."""
        return self.held_out(model, rows).mean()

    def held_out(self, model: Any, rows: Tensor) -> Tensor:
        """What is reported for each row of held-out data."""
        return model.bits_per_dim(rows) if self.config.levels else -model(rows)

    def results(self, model: Any, rows: Tensor, samples: int) -> dict[str, Any]:
        """What is reported of the trained model, by name, beside the mean of `held_out`.

        Of discrete data bits per dimension by `samples` draws of the dequantizing noise: `bpd`, its standard error over
        the data, and in `bpd_each` the value of each.
        """
        if not self.config.levels:
            return {}
        each = torch.cat([importance_weighted(model, part, samples) for part in rows.split(IMPORTANCE_ROWS)])
        error = (each.std() / math.sqrt(len(each))).item()
        return {"bpd": each.mean().item(), "bpd_error": error, "bpd_each": each.tolist()}

    def _beta(self, step: int) -> float:
        return min(1.0, ANNEAL_FROM + step / self.config.anneal) if self.config.anneal else 1.0


def importance_weighted(model: Any, rows: Tensor, samples: int) -> Tensor:
    """Bits per dimension of discrete rows, (B,), by the mean of p(x + u) / q(u | x) over `samples` draws of u.

    An upper bound, which falls to -log2 p(x) / D as samples grow (Burda, Grosse and Salakhutdinov 2016); of one draw
    it is the bound that is trained.
    """
    bits = math.log(2) * math.prod(rows.shape[1:])
    bounds = torch.stack([model.bits_per_dim(rows).double() for _ in range(samples)]) * -bits
    return (math.log(samples) - torch.logsumexp(bounds, 0)) / bits


class FreeEnergy(Objective):
    """Variational inference: KL(q ‖ p) of the model q from a target p known up to its normaliser."""

    data: Target
    unit = "nats"
    quantity = "KL(q ‖ p), nats"

    def loss(self, model: nn.Module, rows: Tensor, step: int) -> Tensor:
        return self._divergence(model, rows, self._beta(step)).mean()

    def held_out(self, model: nn.Module, rows: Tensor) -> Tensor:
        return self._divergence(model, rows, 1.0)

    def results(self, model: nn.Module, rows: Tensor, samples: int) -> dict[str, float]:
        parts = [self.held_out(model, rows[:1].expand(n, -1)) for n in _chunks(samples, EVALUATION_ROWS)]
        values = torch.cat(parts).double()
        return {"kl": values.mean().item(), "kl_error": (values.std() / math.sqrt(samples)).item()}

    def _divergence(self, model: Any, rows: Tensor, beta: float) -> Tensor:
        x, log_prob = model.rsample_and_log_prob(len(rows))
        return log_prob + beta * self.data.energy(x) + self.data.log_normalizer


class NegativeElbo(Objective):
    """A variational autoencoder of pictures made binary: by a threshold, or drawn from their grey levels."""

    unit = "nats"
    quantity = "negative ELBO, nats"

    def loss(self, model: nn.Module, rows: Tensor, step: int) -> Tensor:
        return model(self._binary(rows), self._beta(step)).mean()

    def held_out(self, model: nn.Module, rows: Tensor) -> Tensor:
        return model(self._binary(rows))

    def results(self, model: Any, rows: Tensor, samples: int) -> dict[str, float]:
        x = self._binary(rows)
        per_chunk = max(1, EVALUATION_ROWS // samples)
        bounds = [model.log_likelihood(part, samples) for part in x.split(per_chunk)]
        elbo = torch.stack([-model(x) for _ in range(min(samples, 100))]).mean()
        log_likelihood = torch.cat(bounds).double().mean().item()
        return {"elbo": elbo.item(), "log_likelihood": log_likelihood, "gap": log_likelihood - elbo.item()}

    def _binary(self, rows: Tensor) -> Tensor:
        share = rows / (self.config.levels - 1)
        return torch.bernoulli(share) if self.config.binarize == "sample" else (share >= 0.5).to(share.dtype)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - first) for first in range(0, total, size)]


def objective(config: Config, data: Data) -> Objective:
    """The objective of a run."""
    if isinstance(data, Target):
        return FreeEnergy(config, data)
    return NegativeElbo(config, data) if config.flow.endswith("-vae") else Objective(config, data)
