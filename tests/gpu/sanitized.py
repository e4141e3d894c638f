"""A few small calls on every backend, for compute-sanitizer to watch: `python -m tests.gpu.sanitized`.

Inputs are made on the CPU, so that nearly every kernel launched is ours.
"""

from __future__ import annotations

import sys

import torch

import flowkernels as fk
from flowkernels import backends

from ..ops.affine_cases import BY_DIVISION, BY_STRIDES, TANH, Call, inputs, strided

# Each path of the kernels: a thread, a few lanes, a warp and a block for a row, rows in chunks, pictures, masks,
# learned bounds (few rows, and many, whose sums take a second launch), other strides.
CALLS = [
    *(Call(shape=shape) for shape in ((33, 2), (33, 24), (9, 300), (3, 2050), (2, 20001))),
    Call(shape=(3, 7), passive=3),
    Call(shape=(2, 6, 5, 3), passive=2),
    Call(form=fk.AffineForm("tanh", bound=1.0), shape=(300, 6), learned=True),
    *(call for call in BY_DIVISION if not call.inverse),
    *(call for call in BY_STRIDES if call.form == TANH),
]


SHAPES = ((33, 2), (33, 24), (5, 31), (9, 300), (3, 2050), (2, 20001), (2, 6, 5, 3))  # of elementwise calls


def run_elementwise(shape: tuple[int, ...], how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Dequantization, quantization and a split's log-density, with gradients."""
    x = strided(torch.randint(256, shape, dtype=torch.uint8).to(device), how)
    noise, mean, log_std = (strided(torch.rand(shape).to(dtype).to(device), how).requires_grad_() for _ in range(3))
    z, log_det = fk.dequantize(x, noise)
    log_prob = fk.log_normal(z, mean, log_std)
    ones = torch.ones(shape[0]).to(device)
    grads = torch.autograd.grad((log_det, log_prob), (noise, mean, log_std), (ones, ones))
    for result in (z, log_det, log_prob, fk.quantize(z.detach()), fk.quantize(z.detach(), levels=1000), *grads):
        assert result.cpu().isfinite().all()


def run_spline(shape: tuple[int, ...], how: str, device: torch.device, dtype: torch.dtype) -> None:
    """A spline of every element, forth and back, with gradients."""
    raw_shape = (shape[0], shape[1] * fk.SplineForm().parameters, *shape[2:])
    x, raw = (strided(torch.randn(s).to(dtype), how).to(device).requires_grad_() for s in (shape, raw_shape))
    y, log_det = fk.rational_quadratic_spline(x, raw)
    back, _ = fk.rational_quadratic_spline(y, raw, inverse=True)
    grads = torch.autograd.grad((back, log_det), (x, raw), (torch.ones_like(back), torch.ones_like(log_det)))
    for result in (y, log_det, back, *grads):
        assert result.cpu().isfinite().all()


def run(call: Call, device: torch.device, dtype: torch.dtype) -> None:
    """Forward and backward; every result is copied back, so that the tool sees what was never written."""
    case = inputs(call)
    dtypes = {name: torch.float32 if name == "bound" else dtype for name in case.tensors}
    tensors = {name: t.to(dtypes[name]).to(device).requires_grad_() for name, t in case.tensors.items()}
    if case.options["mask"] is not None:
        case.options["mask"] = case.options["mask"].to(device)
    y, log_det = case.run(tensors)
    grads = torch.autograd.grad(
        (y, log_det), list(tensors.values()), [torch.ones(t.shape, dtype=t.dtype).to(device) for t in (y, log_det)]
    )
    for result in (y, log_det, *grads):
        assert result.cpu().isfinite().all()


def main() -> int:
    device = torch.device("cuda", 0)
    problems = backends.problems(device)
    ran = 0
    for name in ("cuda", "triton"):
        if problems[name] is not None:
            print(f"{name}: cannot run on {device}: {problems[name]}")
            continue
        with fk.backend(name):
            for dtype in (torch.float32, torch.float16):
                for call in CALLS:
                    run(call, device, dtype)
                    ran += 1
                for shape in SHAPES:
                    for how in ("contiguous", "offset", "transposed"):
                        run_elementwise(shape, how, device, dtype)
                        run_spline(shape, how, device, dtype)
                        ran += 2
    torch.cuda.synchronize(device)
    print(f"{ran} calls ran")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
