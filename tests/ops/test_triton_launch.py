"""What the Triton backend compiles for and launches; the launches themselves are replaced."""

from __future__ import annotations

import math

import pytest
import torch

import flowkernels as fk

pytest.importorskip("triton", reason="no triton here")
from flowkernels.ops import triton_stack
from flowkernels.ops.affine_coupling import plan as affine_plan
from flowkernels.ops.affine_coupling import triton as affine
from flowkernels.ops.planar import plan as planar_plan
from flowkernels.ops.planar import triton as planar
from flowkernels.ops.radial import plan as radial_plan
from flowkernels.ops.radial import triton as radial
from flowkernels.ops.triton_launch import Kernel, launch

CPU = torch.device("cpu")


@pytest.fixture
def launched(monkeypatch):
    """The (kernel, tensors) of every launch."""
    launches = []
    monkeypatch.setattr(Kernel, "__call__", lambda kernel, device, *tensors: launches.append((kernel, tensors)))
    return launches


def couple(x, raw, form=None, passive=0, learned=False):
    """Forward and backward."""
    form = form or fk.AffineForm("tanh", bound=None if learned else 2.0)
    bound = torch.ones(x.shape[1] - passive) if learned else None
    y, log_det = affine_plan.forward(affine, launch, x, raw, None, None, bound, form, passive, False)
    wanted = (True, True, False, False, learned)
    affine_plan.backward(affine, launch, y, log_det, x, raw, None, None, bound, form, passive, False, wanted)


def stack(op, shape, depth=4, per_example=False, inverse=False, arrange=lambda t: t, wanted=(True,) * 4):
    """Forward and backward of a stack."""
    x = arrange(torch.zeros(shape))
    lead = (shape[0], depth) if per_example else (depth,)
    vector, number = torch.zeros(*lead, shape[1]), torch.ones(lead)
    plan, module, parameters, options = radial_plan, radial, (vector, number, number), (inverse,)
    if op == "planar":
        plan, module, parameters, options = planar_plan, planar, (vector, vector, number), ("tanh", 0.2, inverse)
    y, log_det = plan.forward(module, launch, x, *parameters, *options)
    return y, plan.backward(module, launch, x, log_det, x, *parameters, *options, wanted)


def names(launches):
    return [kernel.kernel.__name__.removesuffix("_kernel") for kernel, _ in launches]


def test_a_row_in_one_program_takes_one_launch_each_way(launched):
    for features in (1, 2, 33, 784, 16384):
        couple(torch.zeros(3, features), torch.zeros(3, 2 * features))
    assert names(launched) == ["affine_coupling_forward", "affine_coupling_backward"] * 5


def test_long_rows_and_learned_bounds_take_one_more(launched):
    couple(torch.zeros(2, 20000), torch.zeros(2, 40000))
    assert names(launched) == ["affine_coupling_forward", "sum_partials", "affine_coupling_backward"]
    launched.clear()
    couple(torch.zeros(7, 6), torch.zeros(7, 12), learned=True)
    assert names(launched) == ["affine_coupling_forward", "affine_coupling_backward", "sum_partials"]


def test_no_rows_no_launch():
    couple(torch.zeros(0, 6), torch.zeros(0, 12))


ops = pytest.mark.parametrize("op", ["planar", "radial"])


@ops
@pytest.mark.parametrize("inverse", [False, True])
def test_a_stack_takes_one_launch_each_way_and_one_where_something_is_summed(launched, op, inverse):
    for shape in ((1, 1), (5000, 2), (7, 40), (3, 4096)):
        stack(op, shape, depth=1, inverse=inverse)
    assert names(launched) == [f"{op}_forward", f"{op}_backward", f"{op}_finish"] * 4
    launched.clear()
    stack(op, (7, 40), per_example=True, inverse=inverse)
    stack(op, (7, 40), wanted=(True, False, False, False), inverse=inverse)
    assert names(launched) == [f"{op}_forward", f"{op}_backward"] * 2


def test_large_planar_stacks_take_one_more_for_what_rows_share(launched):
    stack("planar", (7, 784), depth=32)
    assert names(launched) == ["planar_prepare", "planar_forward", "planar_prepare", "planar_backward", "planar_finish"]
    launched.clear()
    stack("planar", (7, 784), depth=32, per_example=True)
    assert names(launched) == ["planar_forward", "planar_backward"]


@ops
def test_rows_too_long_for_a_program_go_through_aten(launched, op):
    y, grads = stack(op, (3, 10000), depth=2)
    assert launched == []
    assert y.shape == grads[0].shape == (3, 10000)
    assert all(g.isfinite().all() for g in (y, *grads))


@ops
@pytest.mark.parametrize("rows, features, depth", [(10**7, 2, 32), (4096, 64, 256), (1000, 4096, 256), (128, 40, 80)])
def test_workspaces_are_bounded(launched, monkeypatch, op, rows, features, depth):
    sizes = []
    monkeypatch.setattr(torch, "empty", lambda *size, **_: sizes.append(math.prod(size)) or torch.zeros(0))
    plan = (planar.PlanarBackward if op == "planar" else radial.RadialBackward)(
        x_dtype=0, rows=rows, features=features, depth=depth, per_example=False, parameter_strides=[0, 0, 0],
        inverse=False, saved_strides=[features, 1], grad_y_strides=[features, 1], grad_log_det_stride=1,
        of_parameters=True, **({"activation": "tanh", "negative_slope": 0.2} if op == "planar" else {}),
    )  # fmt: skip
    plan(CPU, *(None,) * 10)
    assert 1 <= plan.programs <= 256
    assert all(4 * size <= triton_stack._WORKSPACE + 2**12 * depth for size in sizes)
    assert plan.programs >= 8


@ops
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("arrange", [lambda t: t, lambda t: t.t().contiguous().t()], ids=["rows", "columns"])
def test_stacks_are_not_compiled_anew_for_another_batch_or_depth(launched, arrange, inverse, op):
    seen = []
    for rows, depth in ((48, 3), (1008, 7)):
        launched.clear()
        stack(op, (rows, 6), depth, inverse=inverse, arrange=arrange)
        seen.append([(k.kernel.__name__, [kind(a) for a in k.arguments], k.warps) for k, _ in launched])
    assert seen[0] == seen[1]


def kind(value):
    """What a kernel is compiled for: constants, and for each other number only its class."""
    if isinstance(value, triton_stack.Constants):
        return value
    if isinstance(value, tuple):
        return tuple(map(kind, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return "number"
    return getattr(value, "value", value)


def specialized(launches):
    found = []
    for kernel, _ in launches:
        *numbers, views, constants = kernel.arguments
        found.append((kernel.kernel.__name__, [kind(n) for n in numbers], kind(views), constants, kernel.warps))
    return found


@pytest.mark.parametrize("arrange", [lambda t: t, lambda t: t.t().contiguous().t()], ids=["rows", "columns"])
@pytest.mark.parametrize("learned", [False, True])
def test_kernels_are_not_compiled_anew_for_another_batch(launched, arrange, learned):
    seen = []
    for rows in (48, 1000):
        launched.clear()
        couple(arrange(torch.zeros(rows, 6)), arrange(torch.zeros(rows, 6)), passive=3, learned=learned)
        seen.append(specialized(launched[:2]))
    assert seen[0] == seen[1]


def test_a_compiled_kernel_is_remembered_for_aligned_tensors_only(monkeypatch):
    """One that was compiled for aligned tensors would read others wrongly."""
    direct, through_triton = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *arguments: direct.append(arguments)

    def run(kernel, *tensors, warmup=False):
        through_triton.append(tensors)
        return Compiled()

    monkeypatch.setattr(Kernel, "run", run)
    kernel = Kernel(None, 1, ("argument",), 4)
    aligned, odd = torch.zeros(8), torch.zeros(9)[1:]
    for tensor in (odd, aligned, aligned, odd, None):
        kernel(CPU, tensor)
    assert [id(t) for (t,) in through_triton] == [id(odd), id(aligned), id(odd)]
    assert [id(t) for t, _ in direct] == [id(aligned), id(None)]
