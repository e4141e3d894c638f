"""Base distributions of flows: modules with `event_shape`, `log_prob(z, context)` and
`rsample(n, context, temperature, generator)`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from .functional import log_normal
from .nn.arguments import whole
from .nn.stack import Amortization


def checked_event_shape(base: Any) -> torch.Size | None:
    """The event shape of a base; TypeError for one without the protocol."""
    missing = [name for name in ("event_shape", "log_prob", "rsample") if not hasattr(base, name)]
    is_module = isinstance(base, nn.Module)
    if missing or not is_module:
        lacks = f"it lacks {', '.join(missing)}" if missing else "it is not a module"
        raise TypeError(
            "base must be a module with event_shape, log_prob(z, context) and rsample(n, context, temperature,"
            f" generator), or a torch.distributions distribution; got {type(base).__name__}: {lacks}"
        )
    return None if base.event_shape is None else torch.Size(base.event_shape)


def _check_event(z: Tensor, event_shape: torch.Size) -> None:
    if z.shape[1:] != event_shape:
        raise ValueError(f"the last latent must have event shape {tuple(event_shape)}; got {tuple(z.shape[1:])}")


class StandardNormal(nn.Module):
    """Independent standard normals. Without `event_shape` it scores any event and cannot sample."""

    _place: Tensor

    def __init__(self, event_shape: torch.Size | None = None) -> None:
        super().__init__()
        self.event_shape = event_shape
        # Follows .to(), to say where and in which dtype to sample; nothing to save.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if self.event_shape is not None:
            _check_event(z, self.event_shape)
        return log_normal(z)

    def rsample(self, n: int, context: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
        if self.event_shape is None:
            raise ValueError("sampling from a standard normal base needs event_shape: fk.Flow(layers, event_shape=...)")
        place = self._place
        z = torch.randn((n, *self.event_shape), generator=generator, dtype=place.dtype, device=place.device)
        return z if temperature == 1 else z * temperature

    def extra_repr(self) -> str:
        return "" if self.event_shape is None else f"event_shape={tuple(self.event_shape)}"


# Distributions that are mean + deviation: for these, temperature has one meaning.
_SYMMETRIC = (
    distributions.Normal,
    distributions.Laplace,
    distributions.Cauchy,
    distributions.StudentT,
    distributions.MultivariateNormal,
    distributions.LowRankMultivariateNormal,
)


def _center(distribution: Distribution) -> Tensor | None:
    """The centre of a distribution that is symmetric about it, else None."""
    while isinstance(distribution, distributions.Independent):
        distribution = distribution.base_dist
    return distribution.loc if isinstance(distribution, _SYMMETRIC) else None


def _own_copy(value: Any, path: str, tensors: dict[int, tuple[str, Tensor]], copies: dict[int, Any]) -> Any:
    """A copy of a distribution, or of what it is made of, whose tensors are its own and are entered in `tensors`."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{path} of the base requires gradients, but a distribution's tensors become buffers: for a base that"
                " learns, write a module with event_shape, log_prob and rsample"
            )
        if id(value) not in tensors:
            tensors[id(value)] = path, value.clone(memory_format=torch.contiguous_format)
        return tensors[id(value)][1]
    if type(value) in (list, tuple):
        return type(value)(_own_copy(v, f"{path}_{i}", tensors, copies) for i, v in enumerate(value))
    if not isinstance(value, (Distribution, Transform)):
        return value
    if id(value) not in copies:
        copy: Any = object.__new__(type(value))
        copies[id(value)] = copy
        for name, attribute in vars(value).items():
            copy.__dict__[name] = _own_copy(attribute, f"{path}_{name}" if path else name, tensors, copies)
        if isinstance(value, Distribution):
            copy._validate_args = False  # values are not checked: that would synchronise, and break compiled graphs
    return copies[id(value)]


def _exchange(value: Any, new: dict[int, Tensor | None], seen: set[int]) -> Any:
    """`value` with tensors exchanged by identity; distributions are changed in place."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_exchange(v, new, seen) for v in value)
    if isinstance(value, (Distribution, Transform)) and id(value) not in seen:
        seen.add(id(value))
        for name, attribute in vars(value).items():
            value.__dict__[name] = _exchange(attribute, new, seen)
    return value


@contextlib.contextmanager
def _seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """The global random stream seeded from a generator: torch.distributions take none."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


class DistributionBase(nn.Module):
    """A `torch.distributions` distribution as the base of a flow.

    Its tensors are copied and become buffers, which follow `.to()` and are in the state_dict. Batch dimensions count
    as event dimensions: ``Normal(torch.zeros(3), 1.0)`` is a base over events of shape (3,). Temperature, other than
    1, is defined for symmetric location-scale families only, as scaling about the centre.

    Raises:
        ValueError: for tensors that require gradients.
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        tensors: dict[int, tuple[str, Tensor]] = {}
        distribution = _own_copy(distribution, "", tensors, {})
        for name, tensor in tensors.values():
            self.register_buffer(name, tensor)
        if distribution.batch_shape:
            distribution = distributions.Independent(distribution, len(distribution.batch_shape), validate_args=False)
        self.distribution = distribution
        self.event_shape = distribution.event_shape

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        _check_event(z, self.event_shape)
        return self.distribution.log_prob(z)

    def rsample(self, n: int, context: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
        base = self.distribution
        name = type(base.base_dist if isinstance(base, distributions.Independent) else base).__name__
        if torch.is_grad_enabled() and not base.has_rsample:
            raise ValueError(f"{name} has no reparameterised samples; use sample, or another base")
        center = None if temperature == 1 else _center(base)
        if temperature != 1 and center is None:
            raise ValueError(f"temperature={temperature} is not defined for a {name} base, only for symmetric families")
        device = next((b.device for b in self.buffers()), torch.device("cpu"))
        with _seeded_by(generator, device):
            z = base.rsample((n,)) if base.has_rsample else base.sample((n,))
        return z if center is None else center + temperature * (z - center)

    def _apply(self, fn, recurse=True):
        with self._following_buffers():
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        with self._following_buffers():  # with assign=True the buffers become other tensors
            super()._load_from_state_dict(*args, **kwargs)

    @contextlib.contextmanager
    def _following_buffers(self) -> Iterator[None]:
        before = dict(self._buffers)
        yield
        _exchange(self.distribution, {id(old): self._buffers[name] for name, old in before.items()}, set())

    def extra_repr(self) -> str:
        return repr(self.distribution)


class DiagonalNormal(nn.Module):
    """Independent normals with means and deviations that are learned, or computed from a context.

    Args:
        features: size D of the event.
        context_features: size C of the context of which means and log-deviations are a linear map; 0 for none.

    It starts as a standard normal. Parameters: `mean` and `log_std` (D,); with a context `amortization`, an
    `nn.Linear` from C to 2 D whose weight starts at 0.

    Raises:
        ValueError: for a number out of range. When called: for a context that is missing or of another shape.

    Example:
        >>> import torch, flowkernels as fk
        >>> base = fk.bases.DiagonalNormal(3, context_features=5)
        >>> flow = fk.Flow([fk.nn.AmortizedPlanar(3, 2, context_features=5)], base)
        >>> z, log_prob = flow.rsample_and_log_prob(4, torch.randn(8, 5))
        >>> z.shape, log_prob.shape
        (torch.Size([8, 4, 3]), torch.Size([8, 4]))
    """

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__()
        whole("features", features, 1)
        whole("context_features", context_features, 0)
        self.event_shape = torch.Size((features,))
        start = torch.zeros(features), torch.zeros(features)
        self.amortization = Amortization(context_features, start, damped=False) if context_features else None
        if self.amortization is None:
            self.mean, self.log_std = map(nn.Parameter, start)

    def _moments(self, context: Tensor | None) -> Sequence[Tensor]:
        return (self.mean, self.log_std) if self.amortization is None else self.amortization.split(context)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        _check_event(z, self.event_shape)
        return log_normal(z, *self._moments(context))

    def rsample(self, n: int, context: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
        mean, log_std = self._moments(context)
        e = torch.randn((n, *self.event_shape), generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + temperature * torch.exp(log_std) * e

    def extra_repr(self) -> str:
        return f"{self.event_shape[0]}"
