"""What the Triton backend compiles for and launches; the launches themselves are replaced."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk

pytest.importorskip("triton", reason="no triton here")
from flowkernels.ops.affine_coupling import triton as affine

CPU = torch.device("cpu")


@pytest.fixture
def launched(monkeypatch):
    """The (kernel, tensors) of every launch."""
    launches = []
    monkeypatch.setattr(affine._Kernel, "__call__", lambda kernel, device, *tensors: launches.append((kernel, tensors)))
    return launches


def couple(x, raw, form=None, passive=0, learned=False):
    """Forward and backward."""
    form = form or fk.AffineForm("tanh", bound=None if learned else 2.0)
    bound = torch.ones(x.shape[1] - passive) if learned else None
    y, log_det = affine.forward(x, raw, None, None, bound, form, passive, False)
    affine.backward(y, log_det, x, raw, False, None, bound, form, passive, False, (True, True, learned))


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


def specialized(launches):
    """What a kernel is compiled for: constants, and for each other number only its class."""

    def kind(value):
        if isinstance(value, tuple):
            return tuple(map(kind, value))
        if isinstance(value, int) and not isinstance(value, bool):
            return "number"
        return getattr(value, "value", value)

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

    monkeypatch.setattr(affine._Kernel, "run", run)
    kernel = affine._Kernel(None, 1, ("argument",), 4)
    aligned, odd = torch.zeros(8), torch.zeros(9)[1:]
    for tensor in (odd, aligned, aligned, odd, None):
        kernel(CPU, tensor)
    assert [id(t) for (t,) in through_triton] == [id(odd), id(aligned), id(odd)]
    assert [id(t) for t, _ in direct] == [id(aligned), id(None)]
