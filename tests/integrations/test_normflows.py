"""normflows' layers, accelerated, against themselves."""

import copy
import pickle

import pytest
import torch
from torch import nn

from flowkernels.integrations import accelerate

nf = pytest.importorskip("normflows")
flows = nf.flows

WIDTHS = {"channel": (3, 2), "channel_inv": (2, 3)}


def mlp(inputs, outputs):
    return nf.nets.MLP([inputs, 8, outputs])


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
@pytest.mark.parametrize("mode", WIDTHS)
def test_coupling_block_by_channels(check_parity, scale_map, mode):
    kept, moved = WIDTHS[mode]
    block = flows.AffineCouplingBlock(mlp(kept, 2 * moved), scale_map=scale_map, split_mode=mode)
    check_parity(block, torch.randn(7, 5), replaced=5)


@pytest.mark.parametrize("mode", WIDTHS)
def test_additive_coupling_block(check_parity, mode):
    kept, moved = WIDTHS[mode]
    check_parity(flows.AffineCouplingBlock(mlp(kept, moved), scale=False, split_mode=mode), torch.randn(7, 5))


@pytest.mark.parametrize("mode", ["checkerboard", "checkerboard_inv"])
@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 5, 4), (6,)], ids=str)
def test_coupling_block_by_checkerboard(check_parity, mode, shape):
    net = nn.Conv2d(3, 6, 3, padding=1) if len(shape) == 3 else mlp(3, 6)
    check_parity(flows.AffineCouplingBlock(net, split_mode=mode), torch.randn(4, *shape))


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_coupling_alone(check_parity, scale_map):
    check_parity(flows.AffineCoupling(mlp(3, 4), scale_map=scale_map), torch.randn(7, 3), torch.randn(7, 2), replaced=2)
    net = nn.Conv2d(2, 6, 3, padding=1)
    check_parity(flows.AffineCoupling(net, scale_map=scale_map), torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("kind", ["alone", "by channels", "masked", "shift"])
def test_plain_perceptrons_are_one_call(check_parity, in_one_call, kind):
    def net(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))

    inputs, mask = (torch.randn(70, 5),), torch.tensor([1.0, 0, 1, 0, 0])
    if kind == "alone":
        layer, inputs = flows.AffineCoupling(net(3, 4)), (torch.randn(70, 3), torch.randn(70, 2))
    elif kind == "by channels":
        layer = flows.AffineCouplingBlock(net(3, 4))
    else:
        layer = flows.MaskedAffineFlow(mask, net(5, 5), net(5, 5) if kind == "masked" else None)
    check_parity(layer, *inputs)
    assert in_one_call
    in_one_call.clear()
    accelerate(layer)
    layer(inputs if kind == "alone" else inputs[0])
    taken = [y for y in in_one_call if y is not None]
    assert len(taken) == sum(isinstance(part, nn.Sequential) for part in layer.modules())


def test_conditioner_whose_output_broadcasts(check_parity):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 4, 1))
    check_parity(flows.AffineCouplingBlock(pooled), torch.randn(3, 4, 4, 4))


def test_unknown_scale_map_is_left_alone():
    report = accelerate(flows.AffineCoupling(mlp(3, 4), scale_map="other"))
    assert "'other'" in report.left_alone[0].why


@pytest.mark.parametrize("leaky", [0.0, 0.2])
@pytest.mark.parametrize("sizes", [[3, 4], [2, 64, 64, 3], [3, 300, 4]], ids=str)
@pytest.mark.parametrize("rows", [7, 100])
def test_perceptron(check_parity, sizes, leaky, rows):
    check_parity(nf.nets.MLP(sizes, leaky=leaky), torch.randn(rows, sizes[0]), methods=("forward",), replaced=1)


@pytest.mark.parametrize("leaky", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 6, 9, 16), (3, 1, 8, 8), (3, 2, 4, 4)], ids=str)
def test_convolutions(check_parity, shape, leaky):
    net = nf.nets.ConvNet2d((shape[1], 8, 8, 5), (3, 1, 3), leaky, init_zeros=False)
    check_parity(net, torch.randn(shape), methods=("forward",), replaced=1)


def test_convolutions_keep_the_layout_of_their_output():
    theirs = nf.nets.ConvNet2d((4, 8, 6), (3, 3))
    ours, formats = copy.deepcopy(theirs), []
    accelerate(ours)
    ours.net[0].register_forward_hook(
        lambda module, inputs, y: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    last = torch.randn(3, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    for x in (torch.randn(3, 4, 8, 8), torch.randn(3, 8, 8, 8).chunk(2, 1)[1], last[:, :4], last[:, :4].contiguous()):
        assert ours(x).stride() == theirs(x).stride()
    ours(torch.randn(3, 4, 8, 8)).sum().backward()
    assert ours.net[0].weight.grad.is_contiguous()
    assert formats == [True, True, False, True, True]


def test_convolutions_with_other_layers_are_left_alone():
    report = accelerate(nf.nets.ConvNet2d((4, 8, 6), (3, 3), actnorm=True), strict=True)
    assert [item.was for item in report.replaced] == ["normflows.ActNorm"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_perceptron_with_other_layers_is_left_alone(dropout):
    for net in (
        nf.nets.MLP([2, 8, 3], dropout=dropout),
        nf.nets.MLP([2, 8, 3], output_fn="tanh", score_scale=0.5),
        nf.nets.MLP([2, 8, 3], output_fn="clampexp", output_scale=2.0),
    ):
        report = accelerate(net, strict=True)
        assert not report.replaced
        assert not report.left_alone


def test_perceptron_that_is_changed_afterwards():
    net, x = nf.nets.MLP([2, 8, 3]), torch.randn(70, 2)
    accelerate(net, strict=True)
    handle = net.net[0].register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(net(x), net.net(x))
    handle.remove()
    net.net[1] = nn.Tanh()
    torch.testing.assert_close(net(x), net.net(x))
    net.net[0] = nn.utils.parametrizations.weight_norm(nn.Linear(2, 8))
    torch.testing.assert_close(net(x), net.net(x))


def test_perceptron_takes_what_the_library_takes():
    net = nf.nets.MLP([2, 8, 3])
    accelerate(net, strict=True)
    assert net(torch.randn(2)).shape == (3,)
    assert net(torch.randn(4, 5, 2)).shape == (4, 5, 3)
    assert net(torch.randn(0, 2)).shape == (0, 3)
    with pytest.raises(RuntimeError):
        net(torch.randn(4, 3))
    with pytest.raises(RuntimeError):
        net(torch.randn(4, 2).double())


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_swap(check_parity, channels):
    check_parity(flows.Permute(channels, mode="swap"), torch.randn(7, channels), replaced=1)
    check_parity(flows.Permute(channels, mode="swap"), torch.randn(2, channels, 3, 4), replaced=1)
    other = torch.randn(7, channels + 1)
    check_parity(flows.Permute(channels, mode="swap"), other, replaced=1)


def test_shuffle_is_left_alone():
    report = accelerate(flows.Permute(4), strict=True)
    assert not report.replaced
    assert not report.left_alone


@pytest.mark.parametrize("which", ["both", "shift", "scale"])
def test_masked_affine(check_parity, which):
    mask = torch.tensor([1.0, 0, 1, 0, 0])
    shift, scale = (mlp(5, 5) if which in ("both", name) else None for name in ("shift", "scale"))
    nets = 2 if which == "both" else 1
    check_parity(flows.MaskedAffineFlow(mask, shift, scale), torch.randn(7, 5), replaced=1 + nets)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize("column", [0, 1])
def test_masked_affine_marks_what_is_not_finite(bad, method, column):
    class Spoiled(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x).index_put((torch.tensor(1), torch.tensor(column)), torch.tensor(bad))

    mask, z = torch.tensor([1.0, 0]), torch.randn(3, 2)
    for nets in ((Spoiled(), mlp(2, 2)), (mlp(2, 2), Spoiled()), (Spoiled(), None)):
        layer = flows.MaskedAffineFlow(mask, *nets)
        expected = getattr(layer, method)(z)
        accelerate(layer, strict=True)
        torch.testing.assert_close(getattr(layer, method)(z), expected, equal_nan=True)


def test_masks_of_other_numbers_are_left_alone():
    layer = flows.MaskedAffineFlow(torch.tensor([0.5, 1.0]), mlp(2, 2), mlp(2, 2))
    assert "0 and 1" in accelerate(layer).left_alone[0].why


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_planar_and_radial(check_parity, shape):
    z = torch.randn(7, *shape)
    check_parity(flows.Planar(shape), z, methods=("forward",), replaced=1)
    check_parity(flows.Planar(shape, act="leaky_relu"), z, replaced=1, exact=False)
    check_parity(flows.Radial(shape), z, methods=("forward",), replaced=1)


@pytest.mark.parametrize("layer", [flows.Planar((3,)), flows.Radial((3,))], ids=["planar", "radial"])
def test_the_library_has_no_inverse(layer):
    accelerate(layer, strict=True)
    with pytest.raises(NotImplementedError):
        layer.inverse(torch.randn(2, 3))


def stack(act="tanh"):
    layers = [flows.Planar((4,), act=act) for _ in range(3)]
    if act == "tanh":
        layers += [flows.Radial((4,)) for _ in range(2)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [*layers, *layers[:1]])


@pytest.mark.parametrize("method", ["forward", "forward_and_log_det"])
def test_runs_of_planar_and_radial_layers(check_parity, method):
    z = torch.randn(7, 4)
    check_parity(stack(), z, methods=(method,), replaced=6, exact=method == "forward")
    methods = method, "inverse", "inverse_and_log_det", "log_prob"
    check_parity(stack("leaky_relu"), z, methods=methods, replaced=4, exact=False)


def couplings(channels=4, mode="channel", **options):
    layers = []
    for i in range(3):
        net = nf.nets.MLP([channels // 2, 5 + i, channels], leaky=0.1 * i)
        layers += [flows.AffineCouplingBlock(net, split_mode=mode, **options), flows.Permute(channels, mode="swap")]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(channels), layers[:-1] if channels == 2 else layers)


def test_runs_with_shared_additive_and_other_layers(check_parity):
    def block(mode="channel", **options):
        return flows.AffineCouplingBlock(nf.nets.MLP([2, 5, options.pop("outputs", 4)]), split_mode=mode, **options)

    def swap():
        return flows.Permute(4, mode="swap")

    shared = block("channel_inv")
    layers = [block(), swap(), swap(), shared, block(scale=False, outputs=2), flows.Permute(4), shared, swap(), shared]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    model.flows[0].flows[1].param_map.net[0].weight.requires_grad_(False)
    methods = "inverse_and_log_det", "forward_and_log_det"
    check_parity(model, torch.randn(7, 4), methods=methods, exact=False)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("mode", ["channel", "channel_inv"])
@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_runs_of_couplings_and_swaps(check_parity, channels, mode, scale_map):
    methods = "forward", "inverse", "forward_and_log_det", "inverse_and_log_det", "log_prob", "forward_kld"
    model = couplings(channels, mode, scale_map=scale_map)
    check_parity(model, torch.randn(7, channels), methods=methods, replaced=len(model.flows) + 3 * 4 + 1, exact=False)


@pytest.mark.parametrize("strict", [False, True])
def test_couplings_that_do_not_join_are_not_mentioned(strict):
    block = flows.AffineCouplingBlock(nf.nets.MLP([2, 5, 4]))
    base = nf.distributions.DiagGaussian(4)
    for layers in ([block, flows.Permute(4)], [flows.Permute(4, mode="swap"), flows.Permute(4, mode="swap")]):
        report = accelerate(nf.NormalizingFlow(base, copy.deepcopy(layers)), strict=strict)
        assert "" not in [r.name for r in report.replaced]

    class Own(nf.NormalizingFlow):
        pass

    report = accelerate(Own(base, [block, flows.Permute(4, mode="swap"), copy.deepcopy(block)]), strict=strict)
    assert not report.left_alone


def nodes(tensor):
    """How many nodes lie between a tensor and the leaves."""
    found, rest = set(), [tensor.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in found and "AccumulateGrad" not in node.name():
            found.add(node)
            rest += [following for following, _ in node.next_functions]
    return len(found)


def test_a_run_of_couplings_is_one_node():
    model, z = couplings(), torch.randn(7, 4)
    before = nodes(model.inverse_and_log_det(z)[1])
    accelerate(model)
    assert nodes(model.inverse_and_log_det(z)[1]) == 2 < before / 20  # and the addition to the sum that is 0 so far


def test_a_run_of_couplings_with_plain_perceptrons(check_parity):
    model, z = couplings(), torch.randn(7, 4)
    for block in model.flows[::2]:
        block.flows[1].param_map = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4))
    check_parity(model, z, methods=("inverse_and_log_det", "forward_and_log_det"), exact=False)
    accelerate(model)
    assert nodes(model.inverse_and_log_det(z)[1]) == 2
    _, log_det = model.flows[0].flows[1]([z[:, :2], z[:, 2:]])
    assert nodes(log_det) == 2  # the network's and the coupling's


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.flows[1].param_map.net[0].register_forward_hook(lambda *_: None),
        lambda block: setattr(block.flows[1], "param_map", nn.Sequential(nn.Linear(2, 4), nn.Tanh())),
    ],
    ids=["hook", "network"],
)
def test_couplings_whose_networks_are_no_perceptrons(check_parity, change):
    model = couplings()
    change(model.flows[2])
    check_parity(model, torch.randn(7, 4), methods=("inverse_and_log_det", "forward_and_log_det"), exact=False)


def test_runs_in_sampling_and_divergences(check_parity):
    model = stack("leaky_relu")
    model.p = nf.distributions.DiagGaussian(4)
    for function in (
        lambda m: m.sample(5),
        lambda m: m.reverse_kld(5),
        lambda m: m.reverse_kld(5, score_fn=False),
        lambda m: m.reverse_alpha_div(5, alpha=0.5, dreg=True),
        lambda m: m.forward_kld(torch.linspace(-1, 1, 20).view(5, 4)),
    ):
        ours = copy.deepcopy(model)
        accelerate(ours)
        torch.manual_seed(3)
        expected = function(model)
        torch.manual_seed(3)
        torch.testing.assert_close(function(ours), expected)


def count_ops(function):
    with torch.profiler.profile() as profile:
        function()
    return sum(e.count for e in profile.key_averages() if e.key.startswith("aten::"))


def test_a_run_is_one_pass_and_its_layers_work_alone():
    model, z = stack(), torch.randn(7, 4)
    before = count_ops(lambda: model(z))
    alone = model.flows[1](z)
    accelerate(model)
    assert count_ops(lambda: model(z)) < before / 3
    torch.testing.assert_close(model.flows[1](z), alone)


def test_a_hook_inside_a_run_is_called():
    model, z, seen = stack(), torch.randn(7, 4), []
    expected = model.forward_and_log_det(z)
    accelerate(model)
    handle = model.flows[1].register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    torch.testing.assert_close(model.forward_and_log_det(z), expected)
    assert seen == [z.shape]
    handle.remove()
    model(z)
    assert len(seen) == 1


def test_an_excluded_layer_parts_a_run():
    model, z = stack(), torch.randn(7, 4)
    expected = model.forward_and_log_det(z)
    report = accelerate(model, exclude="flows.1")
    assert type(model.flows[1]) is flows.Planar
    torch.testing.assert_close(model.forward_and_log_det(z), expected)
    report.undo()
    assert type(model) is nf.NormalizingFlow


def test_frozen_layers_in_a_run_get_no_gradient():
    model = stack()
    model.flows[1].u.requires_grad_(False)
    accelerate(model)
    z, log_det = model.forward_and_log_det(torch.randn(7, 4))
    (z.sum() + log_det.sum()).backward()
    assert model.flows[1].u.grad is None
    assert all(p.grad is not None for name, p in model.flows.named_parameters() if name != "1.u")


def test_a_model_without_runs_is_not_mentioned():
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [flows.Planar((2,)), flows.LULinearPermute(2)])
    report = accelerate(model, strict=True)
    assert [r.name for r in report.replaced] == ["flows.0"]
    parts = [("flows.1.permutation", False), ("flows.1.linear", False)]
    assert [(left.name, left.known) for left in report.left_alone] == parts


def test_a_conditional_model_is_not_mentioned():
    layers = [flows.AutoregressiveRationalQuadraticSpline(2, 1, 4, num_context_channels=3)]
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(2), layers)
    report = accelerate(model, strict=True)
    assert [r.name for r in report.replaced] == ["flows.0.mprqat"]
    assert not report.left_alone


def test_variational_autoencoder_with_a_run():
    model = nf.NormalizingFlowVAE(
        nf.distributions.DiagGaussian(3, trainable=False),
        nf.distributions.NNDiagGaussian(nn.Linear(5, 6)),
        [flows.Planar((3,)) for _ in range(4)],
    )
    x = torch.randn(6, 5)
    torch.manual_seed(0)
    expected = model(x, 2)
    assert len(accelerate(model, strict=True).replaced) == 5
    torch.manual_seed(0)
    torch.testing.assert_close(model(x, 2), expected)


@pytest.mark.parametrize("shape", [(3, 4, 20, 30), (2, 4, 4, 4)], ids=str)
def test_squeeze(check_parity, shape):
    check_parity(flows.Squeeze(), torch.randn(shape), replaced=1)
    # A half of the channels, or of the columns, as a split leaves it.
    for half in (torch.randn(shape).chunk(2, 1)[1], torch.randn(*shape[:3], 2 * shape[3])[..., ::2]):
        layer = flows.Squeeze()
        expected = layer.inverse(half)[0]
        accelerate(layer)
        assert torch.equal(layer.inverse(half)[0], expected)
        assert torch.equal(layer(expected)[0], half)


def test_an_odd_picture_is_refused_as_the_library_does():
    layer = flows.Squeeze()
    accelerate(layer)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        layer.inverse(torch.randn(8, 8, 9, 10))


@pytest.mark.parametrize("shape", [(4, 1, 1), (4,)])
def test_actnorm_and_constant_affine(check_parity, shape):
    x = torch.randn(6, 4, *shape[1:]) if len(shape) == 1 else torch.randn(3, 4, 2, 5)
    affine = flows.affine.AffineConstFlow(shape)
    nn.init.normal_(affine.s)
    check_parity(affine, x, replaced=1)
    norm = flows.ActNorm(shape)
    norm(torch.randn(9, *x.shape[1:]))
    check_parity(norm, x, replaced=1)
    assert affine.s.shape == (1, *shape)


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_actnorm_is_initialised_as_the_library_does(method):
    x = torch.randn(8, 3, 4, 4) * 2 + 1
    theirs, ours = flows.ActNorm((3, 1, 1)), flows.ActNorm((3, 1, 1))
    accelerate(ours.eval())
    for _ in range(2):
        torch.testing.assert_close(getattr(ours, method)(x), getattr(theirs, method)(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("use_lu", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 9, 1, 2)], ids=str)
def test_invertible_convolution(check_parity, shape, use_lu):
    check_parity(flows.Invertible1x1Conv(shape[1], use_lu), torch.randn(shape), replaced=1)


def test_invertible_convolution_without_memory():
    module = flows.Invertible1x1Conv(3, True)
    accelerate(module)
    assert module.to("meta")(torch.empty(2, 3, 4, 4, device="meta"))[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "options", [{}, {"use_lu": False}, {"scale_map": "exp"}, {"split_mode": "checkerboard"}], ids=str
)
@pytest.mark.parametrize("initialised", [False, True])
def test_glow_block(check_parity, options, initialised):
    block = flows.GlowBlock(6, 8, init_zeros=False, **options)
    if initialised:
        block.inverse(torch.randn(9, 6, 4, 4))
    check_parity(block, torch.randn(3, 6, 4, 4), methods=("forward", "inverse")[:: 1 if initialised else -1])


def test_glow_block_of_one_channel(check_parity):
    block = flows.GlowBlock(1, 4, split_mode="checkerboard", init_zeros=False)
    block(torch.randn(9, 1, 4, 4))
    check_parity(block, torch.randn(3, 1, 4, 4))


def glow():
    levels = [[*(flows.GlowBlock(channels, 8) for _ in range(2)), flows.Squeeze()] for channels in (8, 4)]
    bases = [nf.distributions.ClassCondDiagGaussian(shape, 3) for shape in ((8, 2, 2), (2, 4, 4))]
    return nf.MultiscaleFlow(bases, levels, [flows.Merge()])


def blocks(*lu):
    """A model of initialised blocks, of which these have matrices in two factors."""
    layers = [flows.GlowBlock(4, 5, init_zeros=False, use_lu=use_lu) for use_lu in lu]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((4, 2, 3)), layers)
    model.inverse_and_log_det(2 * torch.randn(9, 4, 2, 3) + 1)
    return model


@pytest.mark.parametrize("lu", [(True, True, True), (False, False), (True, True, False, False, True)], ids=str)
def test_runs_of_glow_blocks(check_parity, lu):
    methods = "forward_and_log_det", "inverse_and_log_det", "log_prob"
    report = check_parity(blocks(*lu), torch.randn(3, 4, 2, 3), methods=methods, exact=False)
    assert "" in [r.name for r in report.replaced]


def test_matrices_of_a_run_are_made_at_once():
    model, x = blocks(True, True, True), torch.randn(3, 4, 2, 3)
    accelerate(model)
    with torch.profiler.profile() as profile:
        model.inverse_and_log_det(x)
    assert [event.count for event in profile.key_averages() if event.key == "aten::triu"] == [1]


def test_a_run_of_glow_blocks_that_are_not_initialised():
    x = torch.randn(9, 4, 2, 3)
    theirs = blocks(True, True, True)
    theirs.flows[1].flows[2].data_dep_init_done.zero_()
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    for _ in range(2):
        torch.testing.assert_close(ours.inverse_and_log_det(x), theirs.inverse_and_log_det(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_glow_blocks_with_another_layer_for_the_convolution(check_parity):
    model = blocks(True, True, True)
    for block in model.flows[:2]:
        block.flows[1] = flows.Permute(4)
    check_parity(model, torch.randn(3, 4, 2, 3), methods=("inverse_and_log_det",), exact=False)


def test_what_a_convolution_has_of_its_own_is_kept(check_parity):
    model = blocks(True, True, True)
    model.flows[1].flows[1].eye *= 2
    check_parity(model, torch.randn(3, 4, 2, 3), methods=("inverse_and_log_det",), exact=False)
    conv = flows.Invertible1x1Conv(4, True)
    conv._assemble_W = lambda inverse=False: 2 * torch.eye(4)
    assert "_assemble_W" in accelerate(conv).left_alone[0].why


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_of_couplings_and_swaps_have_the_librarys_dtypes(dtype):
    theirs = nf.MultiscaleFlow([nf.distributions.DiagGaussian(4)], [couplings().flows], [], class_cond=False).to(dtype)
    ours, x = copy.deepcopy(theirs), torch.randn(7, 4, dtype=dtype)
    accelerate(ours, strict=True)
    torch.testing.assert_close(ours.log_prob(x, None), theirs.log_prob(x, None))


def test_models_derived_from_levels_are_not_mentioned():
    class Flat(nf.MultiscaleFlow):
        def __init__(self):
            nn.Module.__init__(self)
            self.flows = nn.ModuleList([flows.GlowBlock(4, 5)])

    assert not accelerate(Flat(), strict=True).left_alone


def test_glow_is_trained_alike():
    x, y = torch.randn(5, 1, 8, 8).double(), torch.tensor([0, 1, 2, 0, 1])
    theirs = glow().double()
    theirs.forward_kld(x, y)
    ours = copy.deepcopy(theirs)
    report = accelerate(ours, strict=True)
    assert len(report.replaced) > 4
    assert "" in [r.name for r in report.replaced]
    for model in (theirs, ours):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model.forward_kld(x, y).backward()
            optimizer.step()
    torch.testing.assert_close(ours.forward_kld(x, y), theirs.forward_kld(x, y))
    torch.manual_seed(0)
    expected = theirs.sample(4, y[:4])
    torch.manual_seed(0)
    torch.testing.assert_close(ours.sample(4, y[:4]), expected)


@pytest.mark.parametrize("tails", ["linear", "circular"])
@pytest.mark.parametrize("features, reverse", [(5, False), (6, False), (6, True)])
def test_coupled_spline(check_parity, tails, features, reverse):
    layer = flows.CoupledRationalQuadraticSpline(features, 1, 8, num_bins=5, tails=tails, reverse_mask=reverse)
    check_parity(layer, 2 * torch.randn(7, features), replaced=3)


def test_coupled_spline_with_context_and_dropout():
    layer = flows.CoupledRationalQuadraticSpline(4, 1, 8, num_context_channels=3, dropout_probability=0.5)
    x, context = torch.randn(7, 4), torch.randn(7, 3)
    torch.manual_seed(0)
    expected = layer(x, context)
    report = accelerate(layer, strict=True)
    assert "normflows.ResidualNet" not in {item.was for item in report.replaced}
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x, context), expected)


def test_splines_with_tails_for_each_feature_are_left_alone():
    report = accelerate(flows.CircularCoupledRationalQuadraticSpline(4, 1, 8, [1]))
    assert [item.was for item in report.replaced] == ["normflows.ResidualNet"]
    assert "differ between features" in report.left_alone[0].why


@pytest.mark.parametrize("rows", [7, 100])
def test_residual_network_behind_another_layer(check_parity, rows):
    net = nf.nets.ResidualNet(3, 5, 16, preprocessing=nn.Linear(3, 3))
    check_parity(net, torch.randn(rows, 3), methods=("forward",), replaced=1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_residual_network_calls_what_is_before_it_once(dropout):
    net, seen = nf.nets.ResidualNet(3, 5, 16, preprocessing=nn.Identity(), dropout_probability=dropout), []
    net.preprocessing.register_forward_hook(lambda module, args, output: seen.append(1))
    accelerate(net, strict=True)
    net(torch.randn(70, 3))
    assert seen == [1]


def test_autoregressive_spline(check_parity):
    check_parity(flows.AutoregressiveRationalQuadraticSpline(3, 1, 8), torch.randn(7, 3), replaced=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_the_op_does_not_take_is_the_librarys(dtype):
    """float64 beside float32 parameters, and half precision: the library's own results and errors."""
    for layer in (flows.Planar((4,)), flows.ActNorm((4,)), flows.MaskedAffineFlow(torch.tensor([1.0, 0, 1, 0]))):
        z = torch.randn(6, 4).to(dtype)
        expected = layer(z)
        accelerate(layer)
        found = layer(z)
        torch.testing.assert_close(found, expected)


def test_pickle_and_state_dict(tmp_path):
    model = stack()
    accelerate(model)
    other = pickle.loads(pickle.dumps(model))
    z = torch.randn(7, 4)
    torch.testing.assert_close(other(z), model(z))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = stack()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    torch.testing.assert_close(fresh(z), model(z))


def test_subclasses_are_left_alone():
    class Own(flows.Planar):
        def forward(self, z):
            return z, torch.zeros(len(z))

    layer = Own((3,))
    report = accelerate(layer)
    assert "a subclass of normflows.Planar" in report.left_alone[0].why
    assert type(layer) is Own
