"""What is measured: the registry that `flowkernels bench` and benchmarks/ share. Each op adds its workloads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.cost import Cost

FORWARD, INVERSE, TRAIN = MODES = ("forward", "inverse", "forward+backward")
QUICK, DEFAULT, FULL = range(3)
EAGER, COMPILE, OURS = "eager", "compile", "ours"  # the implementations that are not another library's


class Pair(NamedTuple):
    """A map and its inverse, each from the inputs of a problem to (value, log_det)."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    inverse: Callable[..., tuple[Tensor, Tensor]]

    def of(self, mode: str) -> Callable[..., tuple[Tensor, Tensor]]:
        """The function that a mode calls."""
        return self.inverse if mode == INVERSE else self.forward


@dataclasses.dataclass(frozen=True)
class Problem:
    """A workload with its data.

    Args:
        inputs: tensors that every implementation is given, and with respect to which it is differentiated.
        natural: the eager code that a person would write.
        ours: the fused operation.
        peers: per library, what loads it and makes its own layer; ImportError where it is not installed.
        cost: of ours, per mode.
        terms: how many summands each element of log_det has.
    """

    inputs: tuple[Tensor, ...]
    natural: Pair
    ours: Pair
    peers: Mapping[str, Callable[[], object]]
    cost: Callable[[str], Cost]
    terms: int


@dataclasses.dataclass(frozen=True)
class Workload:
    """A named problem, not yet built.

    Args:
        level: the least extensive run that includes it: `QUICK`, `DEFAULT` or `FULL`.
        compiled: whether torch.compile is measured in a default run too; in a full one it always is.
        target: whether it counts for the geometric means that the project's targets are stated for.
        axis: ``"batch"`` or ``"dimension"`` for a point of a scaling curve, else None.
        size: the point's place on that axis.
    """

    op: str
    name: str
    build: Callable[[torch.device], Problem]
    level: int = DEFAULT
    compiled: bool = False
    target: bool = False
    axis: str | None = None
    size: int = 0

    def modes(self, level: int) -> tuple[str, ...]:
        """The modes that a run measures."""
        return (FORWARD, TRAIN) if self.axis or level == QUICK else MODES


@functools.cache
def registry() -> tuple[Workload, ...]:
    """Every workload of every op."""
    from . import affine_coupling

    return tuple(affine_coupling.workloads())


def ops() -> list[str]:
    """The ops that have workloads."""
    return sorted({workload.op for workload in registry()})


def targets() -> dict[tuple[str, str, str], tuple[float, float]]:
    """By op, mode and what ours is compared with: the speed-up that it must reach, and the one we are out for.

    Both are geometric means over the workloads that are marked as targets.
    """
    from . import affine_coupling

    return affine_coupling.TARGETS


def select(op: str | None = None, level: int = DEFAULT, scaling: bool = False) -> list[Workload]:
    """The workloads of a run; `scaling` adds the points of the scaling curves, which a full run has anyway."""
    return [
        workload
        for workload in registry()
        if (op is None or workload.op == op) and (workload.level <= level or (scaling and workload.axis is not None))
    ]
