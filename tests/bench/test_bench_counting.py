"""Launches and bytes: of eager code by counting, of ours by formula."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels.bench import natural
from flowkernels.bench.counting import count_both, counting
from flowkernels.ops.affine_coupling import cost

TANH = fk.AffineForm("tanh", bound=2.0)


def sliced_tanh_half(x, raw):
    """As `natural.tanh_half`, with slices in the place of chunks, whose backward fills with zeros."""
    half = x.shape[1] // 2
    kept, active = x[:, :half], x[:, half:]
    s, t = raw.chunk(2, dim=1)
    s = 2.0 * torch.tanh(s / 2.0)
    return torch.cat((kept, active * s.exp() + t), dim=1), s.flatten(1).sum(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_eager_coupling_costs_what_the_trial_counted(device):
    x, raw, grad_y = (torch.ones(4096, 64, device=device) for _ in range(3))
    forward, backward = count_both(sliced_tanh_half, (x, raw), (grad_y, torch.ones(4096, device=device)))
    assert (forward.launches, round(forward.bytes / 1e6, 2)) == (8, 9.98)
    assert (backward.launches, round(backward.bytes / 1e6, 2)) == (11, 17.84)


def test_the_natural_code_that_is_timed_is_not_the_dearer_one():
    x, raw, grad_y = (torch.ones(4096, 64, device="meta") for _ in range(3))
    forward, backward = count_both(natural.tanh_half, (x, raw), (grad_y, torch.ones(4096, device="meta")))
    assert (forward.launches, round(forward.bytes / 1e6, 2)) == (8, 9.98)
    assert (backward.launches, round(backward.bytes / 1e6, 2)) == (9, 13.65)


def test_views_allocations_and_repeated_elements_cost_nothing():
    with counting() as count:
        x = torch.empty(8, 4)
        x.detach().reshape(-1)[:3].view(1, 3).t()
        torch.empty(0).exp()
    assert count.launches == 0
    with counting() as count:
        torch.mul(x, x)
        x[:1].expand(8, 4).exp()
    assert (count.launches, count.read, count.written) == (2, 4 * (32 + 4), 4 * (32 + 32))


def test_overwriting_does_not_read():
    x = torch.zeros(10)
    with counting() as count:
        x.zero_()
        x.copy_(torch.ones(()).expand(10))
        x.add_(1)
    assert (count.launches, count.read, count.written) == (4, 4 + 40, 4 + 3 * 40)  # ones(()) is a launch too


def test_fused_costs_are_the_written_floor():
    batch, features, active = 4096, 64, 32
    x, raw, log_det = torch.ones(batch, features), torch.ones(batch, 2 * active), torch.ones(batch)
    forward = cost.forward(x, raw, None, None, None, TANH, features - active, False)
    assert forward.launches == 1
    assert forward.bytes == forward.floor == 4 * batch * (2 * features + 2 * active + 1)
    backward = cost.backward(x, log_det, x, raw, None, None, None, TANH, features - active, False)
    assert backward.launches == 1
    assert backward.bytes == backward.floor == 4 * batch * (2 * features + 4 * active + 1)
    assert round(forward.bytes / 1e6, 2) == 3.16
    assert round(backward.bytes / 1e6, 2) == 4.21


@pytest.mark.parametrize("layout", ["interleaved_shift_scale", "trailing_shift_scale"])
def test_shift_between_scales_is_read_in_backward(layout):
    form = fk.AffineForm("exp", layout=layout)
    x = torch.ones(8, 16)
    raw = torch.ones(8, 16, 2) if layout.startswith("trailing") else torch.ones(8, 32)
    backward = cost.backward(x, torch.ones(8), x, raw, None, None, None, form, 0, False)
    assert backward.bytes == 4 * 8 * (2 * 16 + 5 * 16 + 1)


def test_interleaved_channels_of_pictures_lie_in_sectors_of_their_own():
    form = fk.AffineForm("exp", layout="interleaved_shift_scale")
    x, raw = torch.ones(2, 4, 8, 8), torch.ones(2, 8, 8, 8)
    backward = cost.backward(x, torch.ones(2), x, raw, None, None, None, form, 0, False)
    assert backward.bytes == 4 * 2 * (2 * 256 + 4 * 256 + 1)


def test_what_needs_no_gradient_is_not_paid_for():
    x, raw, grad = torch.ones(8, 6), torch.ones(8, 8), torch.ones(8)

    def bytes_of(*wanted, grad_y=x, grad_log_det=grad, form=TANH, raw=raw):
        return cost.backward(grad_y, grad_log_det, x, raw, None, None, None, form, 2, False, wanted).bytes / 32

    assert bytes_of(True, True, False) == 2 * 6 + 4 * 4 + 1
    assert bytes_of(False, True, False) == 4 + 4 * 4 + 1  # not the passive part of grad_y
    assert bytes_of(True, False, False) == 2 * 6 + 4  # neither x nor grad_log_det
    assert bytes_of(True, True, False, grad_y=None) == 6 + 4 * 4 + 1
    assert bytes_of(True, True, False, grad_log_det=grad[:1].expand(8)) == 2 * 6 + 4 * 4 + 1 / 8
    additive = {"form": fk.AffineForm("additive"), "raw": torch.ones(8, 4)}
    assert bytes_of(True, True, False, **additive) == 2 * 6 + 4


def test_long_rows_and_learned_bounds_need_a_second_launch():
    x = torch.ones(2, 20000)
    forward = cost.forward(x, torch.ones(2, 40000), None, None, None, TANH, 0, False)
    assert forward.launches == 2
    assert forward.bytes - forward.floor == 2 * 4 * 2 * 3  # three sums for each of two rows, written and read
    form, bound = fk.AffineForm("tanh"), torch.ones(6)
    x, raw = torch.ones(8, 6), torch.ones(8, 12)
    backward = cost.backward(x, torch.ones(8), x, raw, None, None, bound, form, 0, False, (True, True, True))
    assert backward.launches == 2
    assert cost.forward(x[:0], raw[:0], None, None, None, TANH, 0, False).launches == 0


def test_other_dtypes_and_masks():
    mask = fk.nn.checkerboard_mask(4, 4)
    x, raw = torch.ones(8, 3, 4, 4, dtype=torch.bfloat16), torch.ones(8, 6, 4, 4)
    forward = cost.forward(x, raw, None, mask, None, TANH, 0, False)
    assert forward.bytes == 8 * (2 * 48 * 2 + 2 * 48 * 4 + 4) + 16
