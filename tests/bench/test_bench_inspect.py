"""fk.explain and fk.warmup."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flowkernels as fk
from flowkernels import backends

X, RAW = torch.zeros(4, 2), torch.zeros(4, 4)


def test_explain_names_the_backend_that_runs():
    found = fk.explain(fk.affine_coupling, X, RAW)
    assert found.backend == backends.NAMES[backends.resolve(backends.AUTO, X.device)]
    assert found.backend not in found.others
    assert set(found.others) | {found.backend} == set(backends.NAMES[1:])
    assert found.others["cuda"]
    assert str(found).splitlines()[0] == f"affine_coupling on cpu: {found.backend} (the first that can run)"
    assert repr(found) == str(found)


def test_explain_a_request_that_cannot_be_met():
    problem = backends.problem(backends.CUDA, "cpu")
    if problem is None:
        pytest.skip("the emulated module is in place")
    with fk.backend("cuda"):
        found = fk.explain(fk.affine_coupling, X, RAW)
    assert found.backend is None
    assert found.others["cuda"] == problem


def test_explain_inside_a_transform():
    seen = []

    def look(x):
        seen.append(fk.explain(fk.affine_coupling, x, torch.cat((x, x), dim=1)))
        return x

    torch.func.vmap(look)(torch.zeros(3, 4, 2))
    assert seen[0].backend == "reference"
    assert "transform" in seen[0].why


def test_explain_checks_as_the_call_does():
    with pytest.raises(ValueError, match="raw must have shape"):
        fk.explain(fk.affine_coupling, X, X)
    with pytest.raises(TypeError, match="mask must be boolean"):
        fk.explain(fk.affine_coupling, X, RAW, mask=torch.ones(2))
    with pytest.raises(TypeError, match="method sin"):
        fk.explain(torch.sin, X)
    with pytest.raises(TypeError, match="no tensor"):
        fk.explain(fk.affine_coupling)


class Forgetful(nn.Module):
    """Everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))
        self.initialised = False
        self.calls = []

    def forward(self, x):
        if not self.initialised:
            with torch.no_grad():
                self.scale.mul_(x.std(0))
            self.initialised = True
        self.seen = self.seen + 1
        self.calls.append(torch.is_grad_enabled())
        return self.drop(self.norm(self.linear(x))) * self.scale


def test_warmup_changes_nothing():
    model = Forgetful()
    model.linear.weight.grad = torch.full((3, 3), 7.0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    tensors = {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    x = torch.randn(5, 3, requires_grad=True)
    random = torch.get_rng_state()
    fk.warmup(model, x)
    assert model.calls == [False, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.initialised
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())} == tensors
    assert torch.equal(model.linear.weight.grad, torch.full((3, 3), 7.0))
    assert model.linear.bias.grad is None
    assert x.grad is None


def test_warmup_restores_after_an_error():
    class Fails(Forgetful):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("out of memory")

    model = Fails()
    with pytest.raises(RuntimeError, match="out of memory"):
        fk.warmup(model, torch.randn(5, 3))
    assert not model.initialised
    assert model.seen == 0


def test_warmup_runs_the_backward_kernels(monkeypatch):
    from flowkernels.ops.affine_coupling.op import affine_coupling

    ran = []
    run = affine_coupling.backward_on
    monkeypatch.setattr(affine_coupling, "backward_on", lambda *a: ran.append(1) or run(*a))
    flow = fk.models.realnvp(4, transforms=2)
    with torch.no_grad():
        for p in flow.parameters():
            p.normal_(std=0.1)
    fk.warmup(flow, torch.randn(8, 4))
    if backends.resolve(backends.AUTO, torch.device("cpu")) != backends.REFERENCE:
        assert ran
    assert all(p.grad is None for p in flow.parameters())


def test_warmup_takes_several_inputs_and_models_without_gradients():
    fk.warmup(fk.models.realnvp(4, context=2), (torch.randn(8, 4), torch.randn(8, 2)))
    fk.warmup(nn.Identity(), torch.randn(3))
    with pytest.raises(TypeError, match="function"):
        fk.warmup(lambda x: x, torch.randn(3))
