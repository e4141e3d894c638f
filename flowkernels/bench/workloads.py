"""What is measured: the registry that `flowkernels bench` and benchmarks/ share. Each op adds its workloads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.cost import Cost

FORWARD, INVERSE, TRAIN = PASSES = ("forward", "inverse", "forward+backward")
STEP, FUSED_STEP, GRADIENTS = STEPS = ("training step", "training step, fused Adam", "loss and gradients")
MODES = (*PASSES, *STEPS)
QUICK, DEFAULT, FULL = range(3)
EAGER, COMPILE, OURS = "eager", "compile", "ours"  # the implementations that are not another library's


class Pair(NamedTuple):
    """A map and its inverse, where there is one, each from the inputs of a problem to its outputs: (value, log_det)."""

    forward: Callable[..., tuple[Tensor, ...]]
    inverse: Callable[..., tuple[Tensor, ...]] | None

    def of(self, mode: str) -> Callable[..., tuple[Tensor, ...]]:
        """The function that a mode calls."""
        function = self.inverse if mode == INVERSE else self.forward
        if function is None:
            raise NotImplementedError(f"it has no {mode}")
        return function


@dataclasses.dataclass(frozen=True)
class Problem:
    """A workload with its data.

    Args:
        inputs: tensors that every implementation is given, and with respect to which it is differentiated.
        natural: the eager code that a person would write.
        ours: the fused operation.
        peers: per library, what loads it and makes its own layer; ImportError where it is not installed.
        cost: of ours, per mode.
        terms: for the outputs and the gradient of each input, how many roundings may add up in an element.
        steps: by name, what makes a training step of an implementation, given which of `STEPS`. A step returns its
            loss; ImportError where a library is not installed.
        outputs: shapes of what the functions return, where they are not that of the first input and (B,).
    """

    inputs: tuple[Tensor, ...]
    natural: Pair
    ours: Pair
    peers: Mapping[str, Callable[[], object]]
    cost: Callable[[str], Cost]
    terms: tuple[int, ...]
    steps: Mapping[str, Callable[[str], Callable[[], object]]] = dataclasses.field(default_factory=dict)
    outputs: tuple[torch.Size, ...] = ()

    @property
    def output_shapes(self) -> tuple[torch.Size, ...]:
        """Of what the functions return."""
        shape = self.inputs[0].shape
        return self.outputs or (shape, shape[:1])


@dataclasses.dataclass(frozen=True)
class Promise:
    """How many times faster than another implementation ours has to be in a mode, and what we are out for."""

    mode: str
    over: str
    must: float
    out_for: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """A named problem, not yet built.

    Args:
        level: the least extensive run that includes it: `QUICK`, `DEFAULT` or `FULL`.
        compiled: the least extensive run in which torch.compile is measured too; None where it takes minutes.
        target: whether it counts for the geometric means that the project's targets are stated for.
        axis: ``"batch"``, ``"dimension"`` or ``"depth"`` for a point of a scaling curve, else None.
        size: the point's place on that axis.
        modes: what is measured.
        promises: about this workload alone.
    """

    op: str
    name: str
    build: Callable[[torch.device], Problem]
    level: int = DEFAULT
    compiled: int | None = FULL
    target: bool = False
    axis: str | None = None
    size: int = 0
    modes: tuple[str, ...] = PASSES
    promises: tuple[Promise, ...] = ()

    def modes_of(self, level: int) -> tuple[str, ...]:
        """The modes that a run measures."""
        return tuple(mode for mode in self.modes if mode in (FORWARD, TRAIN)) if level == QUICK else self.modes


@functools.cache
def registry() -> tuple[Workload, ...]:
    """Every workload of every op."""
    from . import affine_coupling, images, models, splines, stacks, whole

    of_stacks = (*stacks.workloads(stacks.PLANAR), *stacks.workloads(stacks.RADIAL))
    of_models = (*models.workloads(), *whole.workloads())
    return (*affine_coupling.workloads(), *of_stacks, *splines.workloads(), *images.workloads(), *of_models)


def ops() -> list[str]:
    """The ops that have workloads."""
    return sorted({workload.op for workload in registry()})


def targets() -> dict[tuple[str, str, str], tuple[float, float]]:
    """By op, mode and what ours is compared with: the speed-up that it must reach, and the one we are out for.

    Both are geometric means over the workloads that are marked as targets. What is promised of single workloads is
    with them.
    """
    from . import affine_coupling, images

    return {**affine_coupling.TARGETS, **images.TARGETS}


def select(op: str | None = None, level: int = DEFAULT, scaling: bool = False) -> list[Workload]:
    """The workloads of a run; `scaling` adds the points of the scaling curves, which a full run has anyway."""
    return [
        workload
        for workload in registry()
        if (op is None or workload.op == op) and (workload.level <= level or (scaling and workload.axis is not None))
    ]
