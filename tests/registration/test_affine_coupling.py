"""Affine coupling as a registered operator: derivatives of any order, opcheck, compile, transforms, export."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import flowkernels as fk
from flowkernels import backends
from flowkernels.ops.affine_coupling import reference
from flowkernels.tolerances import error, tolerance

from ..ops.affine_cases import BY_DIVISION, FORMS, Call, inputs

TINY = [
    *(Call(form=form, shape=(2, 3), inverse=inverse) for form in FORMS for inverse in (False, True)),
    *(
        dataclasses.replace(
            call,
            shape=(2, min(4, call.shape[1]), *(min(n, 2) for n in call.shape[2:])),
            passive=None if call.passive is None else max(-1, min(call.passive, 1)),
        )
        for call in BY_DIVISION
    ),
]
FORM = fk.AffineForm("tanh", bound=1.5)


def leaves(case):
    return [t.detach().clone().requires_grad_() for t in case.tensors.values()]


def function(case):
    """`fk.affine_coupling` of the case's tensors in order, returning what has a gradient."""

    def run(*tensors):
        return case.run(dict(zip(case.tensors, tensors)))

    return run


@pytest.mark.parametrize("call", TINY, ids=str)
def test_gradients_to_second_order(backend, call):
    case = inputs(call)
    with fk.backend(backend):
        assert gradcheck(function(case), leaves(case))
        assert gradgradcheck(function(case), leaves(case))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.spec or "exp")
def test_third_order(backend, form, inverse):
    """Third derivatives are wrong where a backward of a backward takes total derivatives; the first two still pass."""
    case = inputs(Call(form=form, shape=(1, 2), inverse=inverse))

    def second(*tensors):
        y, log_det = function(case)(*tensors)
        first = torch.autograd.grad(y.sin().sum() + log_det.cos().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), tensors, create_graph=True)

    if form.scale != "given":  # small, or else exponentials of exponentials drown the finite differences
        case.tensors["raw"] *= 0.3
    with fk.backend(backend):
        assert gradcheck(second, leaves(case), atol=1e-4)


def test_the_written_backward_is_that_of_the_written_forward():
    """reference.backward against autograd of reference.forward."""
    for call in TINY:
        case = inputs(call)
        x, raw, shift, bound = (case.tensors.get(n) for n in ("x", "raw", "shift", "bound"))
        mask, passive = case.options["mask"], case.options["passive"] or 0
        form = case.options["form"]
        needed = [t.requires_grad_() for t in (x, raw, shift, bound) if t is not None]
        y, log_det = reference.forward(x, raw, shift, mask, bound, form, passive, call.inverse)
        grad_y, grad_log_det = torch.randn_like(y), torch.randn_like(log_det)
        loss = (y * grad_y).sum() + (log_det * grad_log_det).sum()
        expected = torch.autograd.grad(loss, needed)
        saved = y if reference.saves_output(form, call.inverse) else x
        got = reference.backward(grad_y, grad_log_det, saved, raw, shift, mask, bound, form, passive, call.inverse)
        for value, exact in zip([g for g in got if g is not None], expected, strict=True):
            assert error(value, exact) <= 100 * tolerance(torch.float64), call


OPCHECK = [
    Call(),
    Call(shape=(3, 4, 2, 2), passive=1, strides="channels_last"),
    Call(shape=(4, 5), strides="transposed"),
    Call(shape=(4, 5), strides="slice", learned=True),
    Call(shape=(4, 5), mask="dense", form=fk.AffineForm("sigmoid", order="shift_first"), inverse=True),
    Call(shape=(4, 5), paired=True),
    Call(shape=(4, 5), form=fk.AffineForm("additive")),
    Call(shape=(0, 5)),
    Call(shape=(1, 1)),
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("call", OPCHECK, ids=str)
def test_opcheck(backend, call, grad):
    case = inputs(call)
    tensors = {n: t.requires_grad_(grad) for n, t in case.tensors.items()}
    number = backends.NAMES.index(backend)
    form, mask, passive = (case.options[n] for n in ("form", "mask", "passive"))
    rest = (form.spec, passive or 0, call.inverse, number)
    arguments = (tensors["x"], tensors["raw"], tensors.get("shift"), mask, tensors.get("bound"), *rest)
    torch.library.opcheck(torch.ops.flowkernels.affine_coupling.default, arguments)
    y, log_det = torch.ops.flowkernels.affine_coupling(*arguments)
    saved = y if reference.saves_output(form, call.inverse) else tensors["x"]
    wanted = (True, True, "shift" in tensors, False, "bound" in tensors)
    grads = (torch.randn_like(y).requires_grad_(grad), torch.randn_like(log_det).requires_grad_(grad))
    backward = (*grads, saved.detach().requires_grad_(grad), *arguments[1:5])
    torch.library.opcheck(
        torch.ops.flowkernels.affine_coupling_backward.default,
        (*backward, wanted, *rest),
    )


def step(x, raw, bound):
    y, log_det = fk.affine_coupling(x, raw, form=fk.AffineForm("tanh"), passive=1, bound=bound)
    return (y.square().sum(1) - log_det).mean()


def test_compile_whole_graph_over_sizes(backend):
    """One graph, dynamic: a second batch size compiles nothing new."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    with fk.backend(backend):
        for rows in (5, 9, 17):
            tensors = [torch.randn(rows, 4), torch.randn(rows, 6), torch.rand(3) + 0.5]
            plain = [t.clone().requires_grad_() for t in tensors]
            traced = [t.clone().requires_grad_() for t in tensors]
            expected, value = step(*plain), compiled(*traced)
            expected.backward()
            value.backward()
            assert torch.allclose(value, expected)
            assert all(torch.allclose(a.grad, b.grad) for a, b in zip(traced, plain))
            frames.append(counter.frame_count)
    assert len(set(frames)) == 1


def test_compile_with_the_form_made_inside_and_inductor(backend):
    def inside(x, raw):
        return fk.affine_coupling(x, raw, form=fk.AffineForm("sigmoid", eps=1e-3), inverse=True)

    torch._dynamo.reset()
    x, raw = torch.randn(4, 3), torch.randn(4, 6)
    with fk.backend(backend):
        for got, expected in zip(torch.compile(inside, fullgraph=True)(x, raw), inside(x, raw)):
            assert torch.equal(got, expected)


def test_compiled_code_follows_the_requested_backend(backend):
    torch._dynamo.reset()
    x, raw = torch.randn(4, 3), torch.randn(4, 6)
    graphs = []

    def keep(graph, _):
        graphs.append([node.args[-1] for node in graph.graph.nodes if "affine_coupling" in str(node.target)])
        return graph

    compiled = torch.compile(lambda x, raw: fk.affine_coupling(x, raw), fullgraph=True, backend=keep)
    for name in (backend, "reference", backend):
        with fk.backend(name):
            compiled(x, raw)
    assert graphs == [[backends.NAMES.index(backend)], []]


def test_transforms_agree_with_autograd(backend):
    form = fk.AffineForm("tanh", bound=1.5)
    x, raw = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)

    def log_det(x, raw):
        y, log_det = fk.affine_coupling(x, raw, form=form)
        return log_det.sum() + (y**2).sum()

    def one(x, raw):
        return log_det(x[None], raw[None])

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(log_det, (x, raw))
        for got, exact in zip(torch.func.jacrev(log_det, (0, 1))(x, raw), expected):
            assert torch.allclose(got, exact)
        for got, exact in zip(torch.func.jacfwd(log_det, (0, 1))(x, raw), expected):
            assert torch.allclose(got, exact)
        for got, exact in zip(torch.func.vmap(torch.func.grad(one, (0, 1)))(x, raw), expected):
            assert torch.allclose(got, exact)
        hessian = torch.autograd.functional.hessian(log_det, (x, raw))
        for row, exact_row in zip(torch.func.hessian(log_det, (0, 1))(x, raw), hessian):
            for got, exact in zip(row, exact_row):
                assert torch.allclose(got, exact)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(log_det(dual, raw)).tangent
        assert torch.allclose(tangent, expected[0].sum())


TRANSFORMS = {
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": torch.func.hessian,
    "grad": torch.func.grad,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_with_compile(backend, name, inside):
    """A registered operator under jacfwd is silently wrong; Dynamo takes the transform stack for a value."""
    torch._dynamo.reset()
    raw = torch.randn(3, 6, dtype=torch.float64)

    def loss(x):
        y, log_det = fk.affine_coupling(x, x.repeat(1, 2) * raw, form=FORM)
        return (y**2).sum() + log_det.sum()

    transform = TRANSFORMS[name]
    x = torch.randn(3, 3, dtype=torch.float64)
    with fk.backend(backend):
        if inside:
            compiled = torch.compile(transform(loss), fullgraph=True, backend="aot_eager")
        else:
            plain = torch.compile(loss, backend="aot_eager")
            plain(x)
            compiled = transform(plain)
        assert torch.allclose(compiled(x), transform(loss)(x))


def test_export_with_a_dynamic_batch(backend):
    class Coupling(torch.nn.Module):
        def forward(self, x, raw):
            return fk.affine_coupling(x, raw, form=FORM, passive=1)

    batch = torch.export.Dim("batch", min=1, max=1024)
    with fk.backend(backend):
        program = torch.export.export(
            Coupling(), (torch.randn(4, 3), torch.randn(4, 4)), dynamic_shapes={"x": {0: batch}, "raw": {0: batch}}
        )
        x, raw = torch.randn(9, 3), torch.randn(9, 4)
        for got, expected in zip(program.module()(x, raw), Coupling()(x, raw)):
            assert torch.equal(got, expected)


def test_batched_gradients(backend):
    """vmap over a backward pass, whose tensors look ordinary and have no memory."""
    x, raw = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def function(x, raw):
        return torch.cat([t.flatten() for t in fk.affine_coupling(x, raw, form=FORM)])

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(function, (x, raw))
        got = torch.autograd.functional.jacobian(function, (x, raw), vectorize=True)
        assert all(torch.allclose(a, b) for a, b in zip(got, expected))
        leaf = x.clone().requires_grad_()
        (rows,) = torch.autograd.grad(function(leaf, raw), leaf, torch.eye(8, dtype=x.dtype), is_grads_batched=True)
    assert torch.allclose(rows, expected[0])


def test_tangents_of_gradients(backend):
    x, raw = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 6, dtype=torch.float64)
    with fk.backend(backend):
        y, _ = fk.affine_coupling(x, raw, form=FORM)
        g, tangent = torch.randn(2, 2, 3, dtype=torch.float64)
        (expected,) = torch.autograd.grad(y, x, tangent, retain_graph=True)  # the gradient is linear in g
        with forward_ad.dual_level():
            (found,) = torch.autograd.grad(y, x, forward_ad.make_dual(g, tangent))
            torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)


def test_memory_that_holds_the_negative(backend):
    """torch keeps the imaginary part of a conjugate as a negated view, which the dispatcher undoes."""
    x = torch.imag(torch.randn(4, 3, dtype=torch.cfloat).conj())
    assert x.is_neg()
    raw = torch.randn(4, 6)
    leaf = raw.clone().requires_grad_()
    with fk.backend(backend):
        y, _ = fk.affine_coupling(x, raw)
        copied, _ = fk.affine_coupling(x.clone(), leaf)
        (grad,) = torch.autograd.grad(copied, leaf, x)
        (same,) = torch.autograd.grad(fk.affine_coupling(x.clone(), leaf)[0], leaf, x.clone())
    assert torch.equal(y, copied)
    assert torch.equal(grad, same)


def test_jit_trace_sees_the_operator(backend):
    with fk.backend(backend):
        traced = torch.jit.trace(
            lambda x, raw: fk.affine_coupling(x, raw)[0], (torch.ones(4, 2), torch.zeros(4, 4)), check_trace=False
        )
        assert torch.equal(traced(torch.full((4, 2), 7.0), torch.zeros(4, 4)), torch.full((4, 2), 7.0))


def test_autocast_mixes_dtypes(backend):
    linear = torch.nn.Linear(3, 6)
    x = torch.randn(5, 3)
    with fk.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        raw = linear(x)
        y, log_det = fk.affine_coupling(x, raw, form=FORM)
        (y.sum() + log_det.sum()).backward()
    assert (raw.dtype, y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(backend, reentrant):
    tensors = [torch.randn(4, 3), torch.randn(4, 6)]
    results = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
        x, raw = (t.clone().requires_grad_() for t in tensors)
        with fk.backend(backend):
            y, log_det = wrap(lambda x, raw: fk.affine_coupling(x, raw, form=FORM), x, raw)
            (y.square().sum() + log_det.sum()).backward()
        results.append((x.grad, raw.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_only_what_is_needed_is_saved_and_computed(backend):
    x, raw = torch.randn(4, 3), torch.randn(4, 6)
    saved = []
    with fk.backend(backend), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y, log_det = fk.affine_coupling(x, raw.requires_grad_(), form=FORM)
        assert [t.shape for t in saved] == [x.shape, raw.shape]
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), raw)
    assert grad.shape == raw.shape
    assert x.grad is None


def test_gradient_of_one_output_alone(backend):
    x, raw = torch.randn(4, 3, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    with fk.backend(backend):
        y, log_det = fk.affine_coupling(x, raw)
        from_log_det = torch.autograd.grad(log_det.sum(), (x, raw), retain_graph=True)
        from_y = torch.autograd.grad(y.sum(), (x, raw))
    assert (from_log_det[0] == 0).all()
    assert (from_log_det[1] == torch.tensor([1.0] * 3 + [0.0] * 3)).all()
    assert torch.allclose(from_y[0], raw[:, :3].exp())


def test_changing_a_saved_tensor_in_place_is_noticed(backend):
    x, raw = torch.randn(4, 3, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    with fk.backend(backend):
        _, log_det = fk.affine_coupling(x, raw)
    with torch.no_grad():
        raw.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_det.sum().backward()


def test_a_flow_trains_the_same_on_every_backend(backend):
    def losses(name):
        torch.manual_seed(3)
        layers = torch.nn.ModuleList(torch.nn.Linear(1, 2) for _ in range(4))
        optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
        data = torch.randn(64, 2) * torch.tensor([1.0, 0.2]) + 1
        history = []
        with fk.backend(name):
            for _ in range(20):
                z, total = data, 0
                for layer in layers:
                    z, log_det = fk.affine_coupling(z.flip(1), layer(z.flip(1)[:, :1]), form=FORM, passive=1)
                    total = total + log_det
                loss = (0.5 * z.square().sum(1) - total).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.append(loss.item())
        return torch.tensor(history)

    assert torch.allclose(losses(backend), losses("reference"), rtol=1e-5)


def test_modules_can_be_copied_and_forms_pickled():
    form = copy.deepcopy(FORM)
    assert form == FORM
    assert hash(form) == hash(FORM)
    assert fk.AffineForm.from_spec(form.spec) == form
