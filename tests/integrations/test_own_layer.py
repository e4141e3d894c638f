"""The example of registering a layer of one's own, against the layers that it starts from."""

import copy
import importlib.util
import pickle
import sys

import pytest
import torch
from torch import nn

from flowkernels.integrations import accelerate


@pytest.fixture(scope="module")
def example(request):
    path = request.config.rootpath / "examples" / "accelerate_own_layer.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where pickle looks
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


class Coupling(nn.Module):
    """Both directions of the tutorial's layer, whose log-determinants are summed in place."""

    def __init__(self, layer, image):
        super().__init__()
        self.layer, self.image = layer, image

    def run(self, z, reverse):
        image = self.image.to(z.dtype) if self.image is not None else None
        given = torch.full((len(z),), 0.5, dtype=z.dtype)
        z, ldj = self.layer(z, given, reverse=reverse, orig_img=image)
        assert ldj is given
        return z, ldj

    def forward(self, z):
        return self.run(z, False)

    def inverse(self, z):
        return self.run(z, True)


MASKS = {
    "checkerboard": torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 3)[None, None],
    "channels": torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("image", [False, True])
def test_coupling_of_the_tutorial(check_parity, example, mask, image):
    torch.manual_seed(0)
    layer = example.CouplingLayer(nn.Conv2d(3 + image, 6, 3, padding=1), MASKS[mask], 3)
    layer.scaling_factor.data.normal_()
    module = Coupling(layer, torch.randn(5, 1, 4, 6) if image else None)
    check_parity(module, torch.randn(5, 3, 4, 6), methods=("forward", "inverse"), replaced=1)


@pytest.mark.parametrize("channels", [2, 5])
def test_coupling_of_a_glow(check_parity, example, channels):
    torch.manual_seed(0)
    layer = example.AffineCoupling(nn.Conv2d((channels + 1) // 2, channels // 2 * 2, 3, padding=1))
    check_parity(layer, torch.randn(5, channels, 4, 6), methods=("forward", "reverse"), replaced=1)


def test_what_is_left_alone(example):
    additive = accelerate(example.AffineCoupling(nn.Conv2d(2, 2, 1), affine=False))
    assert "additive" in additive.left_alone[0].why
    soft = accelerate(example.CouplingLayer(nn.Conv2d(2, 4, 1), torch.full((1, 1, 2, 2), 0.5), 2))
    assert "mask" in soft.left_alone[0].why


def test_half_precision_is_the_layers_own(example):
    torch.manual_seed(0)
    model = example.Model(side=4)
    ours = copy.deepcopy(model)
    accelerate(ours)
    x = torch.randn(3, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(x), model(x))


def test_copies_and_the_way_back(example):
    torch.manual_seed(0)
    model = example.Model(side=4)
    x = torch.randn(3, 4, 4, 4)
    expected = model(x)
    report = accelerate(model, strict=True)
    assert len(report.replaced) == 8
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(other(x), expected)
    report.undo()
    assert not any("Fast" in type(module).__name__ for module in model.modules())


def test_the_example_runs(example, capsys, monkeypatch):
    monkeypatch.setattr(example, "seconds", lambda *_: 0.0)
    example.main()
    assert "8 replaced, 0 left alone" in capsys.readouterr().out
