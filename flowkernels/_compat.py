"""The private parts of torch that we rely on, in one place with a test per torch version (tests/registration)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

_len_dispatch_stack, _get_tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_PLAIN = frozenset((Tensor, torch.nn.Parameter, torch.nn.Buffer))


def inside_transform() -> bool:
    """Whether a functorch transform (vmap, grad, jvp, ...) or a forward-mode level is active.

    A registered operator is silently wrong under jacfwd and raises under jacrev and vmap(grad), so the reference
    formula runs there instead.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def batched(*tensors: Tensor | None) -> bool:
    """Whether a gradient stands for many: autograd's `is_grads_batched` and vmap over a backward pass."""
    functorch = torch._C._functorch
    for t in tensors:
        if t is not None and (functorch.is_legacy_batchedtensor(t) or functorch.is_batchedtensor(t)):
            return True
    return False


@torch.compiler.assume_constant_result
def tracing_inside_transform() -> bool:
    """`inside_transform` while torch.compile traces: evaluated, because Dynamo takes the stack it sees for a value."""
    return inside_transform()


def transforming() -> bool:
    """`inside_transform`, whether torch.compile traces or not."""
    return tracing_inside_transform() if torch.compiler.is_compiling() else inside_transform()


def plain_eager(*tensors: Tensor | None) -> bool:
    """Whether ordinary tensors are executed eagerly and nothing watches: no dispatch mode, no subclass, no tracing.

    Nor is one negated: memory that holds the negative of what a tensor means, which only the dispatcher undoes.
    """
    # A loop, here and in `batched`, because a generator costs more than all that it does.
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_neg()):
            return False
    return _len_dispatch_stack() == 0 and _get_tracing_state() is None


def readable(*grads: Tensor | None) -> bool:
    """Whether a kernel can read gradients: each is one tensor without a tangent, and nobody differentiates further."""
    return not (torch.is_grad_enabled() or batched(*grads) or inside_transform()) and plain_eager(*grads)


def current_stream(device: torch.device) -> int:
    """The handle of the current stream of a CUDA device."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def plain(module: nn.Module) -> bool:
    """Whether nothing but its class decides what calling the module does: no hooks, no `forward` of the instance.

    A container may pass over the call of such a module and compute what it computes.
    """
    own = vars(module)
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "inverse" in own
        or torch_module._has_any_global_hook()
    )
