import pytest
import torch
from torch import nn

from flowkernels.bench import models

NAMES = {w.name: w for w in models.workloads()}


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_is_the_same_model_at_every_run(name):
    made = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        made.append(NAMES[name].build(torch.device("cpu")).inputs)
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize("shape", [(16, 12, 16, 16), (16, 48, 8, 8)])
def test_roundings_decide_no_relu(monkeypatch, shape):
    def nearest(flow, x, eager):
        models._spread_out(flow)
        found = []
        for module in flow.eval().double().modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].abs().min().item()))
        flow(x.double())
        return found

    monkeypatch.setattr(models, "_problem", nearest)
    found = models._glow_step(torch.device("cpu"), shape)
    assert len(found) == 2
    assert min(found) > 3e-6
