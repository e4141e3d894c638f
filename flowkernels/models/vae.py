"""Variational autoencoders with a flow as the posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bases import DiagonalNormal, StandardNormal
from ..flows import Flow
from ..nn import AmortizedPlanar, AmortizedRadial
from ..nn.arguments import whole
from ..nn.perceptron import perceptron


class VAE(nn.Module):
    """A variational autoencoder of binary data whose posterior is a flow: q(z | x), p(x | z) Bernoulli, p(z) = N(0, I).

    Kingma and Welling, "Auto-Encoding Variational Bayes" (2014); Rezende and Mohamed, "Variational Inference with
    Normalizing Flows" (2015). `vae` builds one.

    Args:
        encoder: from x (B, D) to a context (B, C).
        posterior: a `Flow` over z (L,) given that context, whose `inverse` direction is in closed form.
        decoder: from z (B, L) to the logits of x (B, D).
    """

    def __init__(self, encoder: nn.Module, posterior: Flow, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.prior = StandardNormal(posterior.event_shape)
        self.posterior = posterior
        self.decoder = decoder

    def forward(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """The free energy of each row of binary x in nats, by one sample: log q(z | x) - beta log p(x, z), shape (B,).

        With beta = 1, minus the evidence lower bound; a smaller beta tempers the model, as annealing does.
        """
        log_joint, log_posterior = self._sampled(x, self.encoder(x), 1)
        return (log_posterior - beta * log_joint)[:, 0]

    def log_likelihood(self, x: Tensor, samples: int, chunk: int = 100) -> Tensor:
        """An importance-weighted lower bound on log p(x) in nats, which tends to it as samples grow, shape (B,).

        Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders" (2016), equation 8. One sample gives the
        evidence lower bound. Memory is that of `chunk` samples of each row.
        """
        whole("samples", samples, 1)
        whole("chunk", chunk, 1)
        context = self.encoder(x)
        log_weights = []
        for first in range(0, samples, chunk):
            log_joint, log_posterior = self._sampled(x, context, min(chunk, samples - first))
            log_weights.append(log_joint - log_posterior)
        return torch.logsumexp(torch.cat(log_weights, 1), 1) - math.log(samples)

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """The probabilities of n pictures, (n, D), for z from the prior with its deviation times the temperature."""
        return torch.sigmoid(self.decoder(self.prior.rsample(n, None, temperature, generator)))

    def _sampled(self, x: Tensor, context: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z | x) of n samples for each row, shapes (B, n)."""
        z, log_posterior = self.posterior.rsample_and_log_prob(n, context)
        rows = z.flatten(0, 1)
        logits, log_prior = (f(rows).unflatten(0, z.shape[:2]) for f in (self.decoder, self.prior.log_prob))
        wrong = F.binary_cross_entropy_with_logits(logits, x[:, None].expand_as(logits), reduction="none").sum(2)
        return log_prior - wrong, log_posterior


AMORTIZED = {"planar": AmortizedPlanar, "radial": AmortizedRadial}


def vae(
    features: int, *, latent: int = 40, hidden: Sequence[int] = (400,), flow: str = "planar", depth: int = 8
) -> VAE:
    """A variational autoencoder whose posterior is a diagonal normal followed by planar or radial flows.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), sections 4 and 6, with ReLU in the
    place of maxout. Means, deviations and the parameters of the flow are linear maps of the encoder's last hidden
    layer. The flow starts as the identity.

    Args:
        features: size D of x.
        latent: size L of z.
        hidden: sizes of the hidden layers of the encoder, and in reverse of the decoder; at least one.
        flow: ``"planar"`` or ``"radial"``.
        depth: number K of maps; 0 leaves the diagonal normal.

    Raises:
        ValueError: for a number or a name out of range, naming it.

    Example:
        >>> import torch, flowkernels as fk
        >>> model = fk.models.vae(64, latent=8, hidden=(32,), depth=4)
        >>> x = torch.randint(2, (10, 64)).float()
        >>> model(x).shape, model.log_likelihood(x, samples=50).shape, model.sample(3).shape
        (torch.Size([10]), torch.Size([10]), torch.Size([3, 64]))
    """
    whole("features", features, 1)
    whole("latent", latent, 1)
    for size in hidden:
        whole("hidden", size, 1)
    if not hidden:
        raise ValueError(f"hidden must hold at least one size; got {hidden!r}")
    if flow not in AMORTIZED:
        raise ValueError(f"flow must be one of {', '.join(AMORTIZED)}; got {flow!r}")
    encoder = nn.Sequential(perceptron([features, *hidden]), nn.ReLU())
    layers = [AMORTIZED[flow](latent, depth, hidden[-1])] if depth else []
    posterior = Flow(layers, DiagonalNormal(latent, hidden[-1]))
    return VAE(encoder, posterior, perceptron([latent, *reversed(hidden), features]))
