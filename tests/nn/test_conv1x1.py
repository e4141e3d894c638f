import copy

import pytest
import torch
from torch import nn

import flowkernels as fk


def perturbed(layer):
    """The layer with parameters other than those of a rotation."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else parameter.data.add_(0.1 * torch.randn(()))
    return layer


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (4, 1, 2, 2)])
def test_log_det_and_inverse(check_layer, lu, shape):
    check_layer(perturbed(fk.nn.InvertibleConv1x1(4, lu=lu)), torch.randn(2, *shape))
    check_layer(perturbed(fk.nn.ActNormConv1x1(4, lu=lu)).eval(), torch.randn(2, *shape))


@pytest.mark.parametrize("lu", [False, True])
def test_it_starts_as_a_rotation(lu):
    layer = fk.nn.InvertibleConv1x1(6, lu=lu)
    weight, log_det = layer.matrix()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-5, rtol=0)
    assert abs(log_det) < 1e-5


@pytest.mark.parametrize("lu", [False, True])
def test_it_multiplies_the_channels_of_each_pixel(lu):
    layer = perturbed(fk.nn.InvertibleConv1x1(4, lu=lu))
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    y, log_det = layer(x, torch.zeros(2, 1))
    weight, _ = layer.matrix()
    torch.testing.assert_close(y, torch.einsum("ij,bjhw->bihw", weight, x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(log_det, 36 * torch.linalg.slogdet(weight)[1].expand(2), rtol=1e-4, atol=1e-4)
    assert log_det.dtype == torch.float32
    back, back_log_det = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    assert torch.equal(back_log_det, -log_det)


def test_the_factors_multiply_to_the_matrix_and_its_determinant_needs_no_factorisation():
    torch.manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.manual_seed(1)
    layer = fk.nn.InvertibleConv1x1(5, lu=True)
    torch.testing.assert_close(layer.matrix()[0], rotation)
    nn.init.normal_(layer.log_s)
    weight, log_det = layer.matrix()
    torch.testing.assert_close(log_det, torch.linalg.slogdet(weight.double())[1], rtol=1e-4, atol=1e-5)
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"lower", "upper", "log_s"}
    assert set(layer.state_dict()) == names | {"order", "sign_s"}


def test_an_ill_conditioned_matrix_is_inverted_as_well_as_float32_allows():
    layer = fk.nn.InvertibleConv1x1(3)
    u, v = (torch.linalg.qr(torch.randn(3, 3))[0] for _ in range(2))
    layer.weight.data.copy_(u @ torch.diag(torch.tensor([1.0, 1e-2, 1e-4])) @ v)
    weight = layer.weight.detach()
    exact = torch.linalg.inv(weight.double())
    x = torch.eye(3)
    assert (layer.inverse(x)[0].T - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_folded_equals_apart(lu, inverse, train):
    """Values, initialisation and gradients of all parameters."""
    folded = fk.nn.ActNormConv1x1(4, lu=lu).double().train(train)
    apart = copy.deepcopy(folded)
    if not train:
        for layer in (folded, apart):
            layer.actnorm.log_scale.data.copy_(torch.linspace(-1, 1, 4))
            layer.actnorm.shift.data.copy_(torch.linspace(2, -1, 4))
    x = 3 + 2 * torch.randn(5, 4, 3, 3, dtype=torch.float64)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    if inverse:
        value, log_det = folded.inverse(one)
        middle, first = apart.conv.inverse(other)
        expected, second = apart.actnorm.inverse(middle)
    else:
        value, log_det = folded(one)
        middle, first = apart.actnorm(other)
        expected, second = apart.conv(middle)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(log_det, first + second)
    assert bool(folded.actnorm.initialized) == train
    for a, b in zip(folded.buffers(), apart.buffers()):
        assert torch.equal(a, b)
    weights = torch.randn_like(value)
    ours = torch.autograd.grad((weights * value).sum() + log_det.square().sum(), [one, *folded.parameters()])
    theirs = torch.autograd.grad(
        (weights * expected).sum() + (first + second).square().sum(), [other, *apart.parameters()]
    )
    torch.testing.assert_close(ours, theirs)


def test_errors_name_the_shape():
    for channels in (0, 2.0):
        with pytest.raises(ValueError, match=f"channels must be an integer, at least 1; got {channels}"):
            fk.nn.InvertibleConv1x1(channels)
    for layer in (fk.nn.InvertibleConv1x1(3), fk.nn.ActNormConv1x1(3)):
        for call in (layer.forward, layer.inverse):
            with pytest.raises(ValueError, match=r"x must have shape \(B, 3, \.\.\.\); got \(2, 4, 5, 5\)"):
                call(torch.zeros(2, 4, 5, 5))


@pytest.mark.parametrize("layer", [fk.nn.InvertibleConv1x1, fk.nn.ActNormConv1x1])
@pytest.mark.parametrize("lu", [False, True])
def test_compiles_and_takes_an_empty_batch(layer, lu):
    layer = layer(4, lu).eval()
    x = torch.randn(2, 4, 3, 3)
    for call in (layer.forward, layer.inverse):
        expected = call(x)
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), expected)
        assert [tuple(v.shape) for v in call(x[:0])] == [(0, 4, 3, 3), (0,)]


@pytest.mark.parametrize("layer", [fk.nn.InvertibleConv1x1, fk.nn.ActNormConv1x1])
def test_shapes_are_known_without_memory(layer):
    y, log_det = layer(3).to("meta").eval()(torch.empty(2, 3, 4, 4, device="meta"))
    assert (y.shape, log_det.shape) == ((2, 3, 4, 4), (2,))


def test_what_is_exported_keeps_its_precision_under_autocast():
    x = torch.randn(2, 3, 4, 4)
    exported = torch.export.export(fk.nn.InvertibleConv1x1(3), (x,)).module()
    with torch.autocast("cpu", torch.bfloat16):
        assert exported(x)[0].dtype == torch.float32
