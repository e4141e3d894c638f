"""How to make `fk.accelerate` know a layer of one's own, on two couplings that many people have copies of.

A fast form is a subclass that overrides the methods which compute, registered for the class that it is to replace. It
stands at the top level of a module, so that pickle finds it, and has neither an `__init__` nor a state of its own.
"""

import copy
import time

import torch
from torch import nn

import flowkernels as fk
from flowkernels.integrations import Given, register, takes

# 1. The layers as they are, in somebody's project.


class CouplingLayer(nn.Module):
    """As in the UvA's tutorial on normalizing flows: masked, a learned bound, log-determinants summed in place."""

    def __init__(self, network, mask, c_in):
        super().__init__()
        self.network = network
        self.scaling_factor = nn.Parameter(torch.zeros(c_in))
        self.register_buffer("mask", mask)  # (1, 1, H, W) or (1, C, 1, 1), 1: kept

    def forward(self, z, ldj, reverse=False, orig_img=None):
        kept = z * self.mask
        raw = self.network(kept if orig_img is None else torch.cat([kept, orig_img], dim=1))
        s, t = raw.chunk(2, dim=1)
        bound = self.scaling_factor.exp().view(1, -1, 1, 1)
        s = torch.tanh(s / bound) * bound * (1 - self.mask)
        t = t * (1 - self.mask)
        if reverse:
            z = z * torch.exp(-s) - t
            ldj -= s.sum(dim=[1, 2, 3])
        else:
            z = (z + t) * torch.exp(s)
            ldj += s.sum(dim=[1, 2, 3])
        return z, ldj


class AffineCoupling(nn.Module):
    """As in ports of Glow: the first half of the channels is kept; `reverse` returns no log-determinant."""

    def __init__(self, net, affine=True):
        super().__init__()
        self.net, self.affine = net, affine

    def forward(self, x):
        kept, moved = x.chunk(2, 1)
        raw = self.net(kept)
        if not self.affine:
            return torch.cat([kept, moved + raw], 1), None
        log_s, t = raw.chunk(2, 1)
        s = torch.sigmoid(log_s + 2)
        return torch.cat([kept, (moved + t) * s], 1), torch.log(s).flatten(1).sum(1)

    def reverse(self, y):
        kept, moved = y.chunk(2, 1)
        raw = self.net(kept)
        if not self.affine:
            return torch.cat([kept, moved - raw], 1)
        log_s, t = raw.chunk(2, 1)
        return torch.cat([kept, moved / torch.sigmoid(log_s + 2) - t], 1)


# 2. Their fast forms. `AffineForm` says how the network's output becomes scale and shift: here the presets have it.

UVA, GLOW = fk.AffineForm.uva(), fk.AffineForm.glow()


@register(CouplingLayer, runs="fk.affine_coupling")
class FastCouplingLayer(CouplingLayer):
    @staticmethod
    def refuse(module):
        """Why an instance is left alone; None: it is taken."""
        return None if bool(((module.mask == 0) | (module.mask == 1)).all()) else "a mask of other numbers than 0 and 1"

    def forward(self, z, ldj, reverse=False, orig_img=None):
        kept = z * self.mask
        raw = self.network(kept if orig_img is None else torch.cat([kept, orig_img], dim=1))
        if not takes(z, raw, self.scaling_factor):  # half precision, say: the layer's own formula, on what is there
            given = Given(self, network=lambda _: raw)
            return CouplingLayer.forward(given, z, ldj, reverse, orig_img)
        bound = self.scaling_factor.exp()
        z, log_det = fk.affine_coupling(z, raw, form=UVA, mask=self.mask[0].bool(), bound=bound, inverse=reverse)
        ldj += log_det
        return z, ldj


@register(AffineCoupling, runs="fk.affine_coupling", note="affine=True")
class FastAffineCoupling(AffineCoupling):
    @staticmethod
    def refuse(module):
        return None if module.affine else "additive: one addition already"

    def forward(self, x):
        return self.couple(x, False) or super().forward(x)

    def reverse(self, y):
        found = self.couple(y, True)
        return super().reverse(y) if found is None else found[0]

    def couple(self, x, inverse):
        """None where the op does not take the call; decided before the network has run."""
        if not (self.affine and takes(x, *self.net.parameters())) or torch.is_autocast_enabled(x.device.type):
            return None
        kept = (x.shape[1] + 1) // 2  # as `chunk` has it
        return fk.affine_coupling(x, self.net(x[:, :kept]), form=GLOW, passive=kept, inverse=inverse)


# 3. Use.


def network(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, outputs, 3, padding=1))


class Model(nn.Module):
    """A few couplings of either kind."""

    def __init__(self, channels=4, side=16):
        super().__init__()
        place = torch.arange(side)
        board = ((place[:, None] + place) % 2).float()[None, None]
        self.masked = nn.ModuleList(
            CouplingLayer(network(channels, 2 * channels), board if i % 2 else 1 - board, channels) for i in range(4)
        )
        self.halves = nn.ModuleList(AffineCoupling(network(channels // 2, channels)) for _ in range(4))

    def forward(self, z):
        ldj = torch.zeros(len(z))
        for layer in self.masked:
            z, ldj = layer(z, ldj)
        for layer in self.halves:
            z, log_det = layer(z)
            ldj, z = ldj + log_det, z.flip(1)
        return z, ldj


def seconds(model, x, calls=20):
    """The time of one forward and backward pass."""
    start = time.perf_counter()
    for _ in range(calls):
        z, ldj = model(x)
        (z.square().flatten(1).sum(1) - ldj).mean().backward()
    return (time.perf_counter() - start) / calls


def main():
    torch.manual_seed(0)
    before = Model()
    after = copy.deepcopy(before)
    print(fk.accelerate(after))
    x = torch.randn(64, 4, 16, 16)
    for (name, ours), theirs in zip(zip(("z", "log_det"), after(x)), before(x)):
        print(f"{name}: largest difference {(ours - theirs).abs().max().item():.1e}")
    for model in (before, after):
        seconds(model, x, 3)
    print(f"a step: {1e3 * seconds(before, x):.1f} ms before, {1e3 * seconds(after, x):.1f} ms after")


if __name__ == "__main__":
    main()
