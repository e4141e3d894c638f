import copy
import pickle

import pytest
import torch
from torch import distributed, multiprocessing

import flowkernels as fk


def batch(*shape):
    return 4 - 3 * torch.rand(*shape) ** 2


def check_normalised(y):
    values = y.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(20, 3), (8, 3, 5), (4, 3, 6, 5), (4, 3, 2, 3, 2)])
def test_the_first_batch_is_normalised(shape):
    layer, x = fk.nn.ActNorm(3), batch(*shape)
    y, _ = layer(x, torch.zeros(len(x), 2))
    check_normalised(y)
    std, mean = torch.std_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
    torch.testing.assert_close(layer.log_scale, -std.log())
    torch.testing.assert_close(layer.shift, -mean / std)
    later = batch(*shape)
    y, log_det = layer(later)
    view = (3, *(1,) * (len(shape) - 2))
    torch.testing.assert_close(y, later * layer.log_scale.exp().view(view) + layer.shift.view(view))
    torch.testing.assert_close(log_det, layer.log_scale.sum().expand(shape[0]) * y[0, 0].numel())
    torch.testing.assert_close(layer.inverse(y)[0], later)


def test_the_inverse_may_come_first():
    layer, y = fk.nn.ActNorm(3), batch(6, 3, 4, 4)
    with torch.no_grad():
        layer.inverse(y)
    assert not layer.initialized  # a sample looked at is not training
    x, _ = layer.inverse(y)
    check_normalised(x)
    torch.testing.assert_close(layer(x)[0], y)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 2, 2)])
def test_round_trip_and_log_det(check_layer, shape):
    layer = fk.nn.ActNorm(3)
    layer(batch(*shape))
    check_layer(layer, torch.randn(shape))


def test_evaluation_initialises_nothing():
    layer, x = fk.nn.ActNorm(3).eval(), batch(6, 3)
    assert torch.equal(layer(x)[0], x)
    assert torch.equal(layer.inverse(x)[0], x)
    assert not layer.initialized
    check_normalised(layer.train()(x)[0])


def test_constant_channels_and_a_batch_of_one_are_shifted_only():
    x = batch(6, 3, 4, 4)
    x[:, 1] = 1000.1
    layer = fk.nn.ActNorm(3)
    y, _ = layer(x)
    assert layer.log_scale[1] == 0
    assert y[:, 1].abs().max() < 1e-3
    check_normalised(y[:, ::2])
    layer, x = fk.nn.ActNorm(3), batch(1, 3)
    y, log_det = layer(x)
    assert torch.equal(y, torch.zeros(1, 3))
    assert torch.equal(log_det, torch.zeros(1))
    layer = fk.nn.ActNorm(3)
    check_normalised(layer(batch(1, 3, 8, 8))[0])  # one picture has pixels enough


def test_gradients_reach_the_parameters_from_the_first_call_on():
    layer, x = fk.nn.ActNorm(2), batch(6, 2)
    y, log_det = layer(x)
    (y.square().sum() + log_det.sum()).backward()
    torch.testing.assert_close(layer.log_scale.grad, torch.full((2,), 2 * 6.0 + 6), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.shift.grad, torch.zeros(2), rtol=0, atol=1e-4)


def test_the_flag_is_saved():
    layer = fk.nn.ActNorm(3)
    assert not layer.state_dict()["initialized"]
    fresh = copy.deepcopy(layer.state_dict())
    layer(batch(6, 3))
    other = fk.nn.ActNorm(3)
    other.load_state_dict(layer.state_dict())
    assert other.initialized
    for copied in (layer, other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = copied.shift.clone()
        copied(batch(6, 3) + 100)
        assert torch.equal(copied.shift, before)
    layer.load_state_dict(fresh)  # a fresh one initialises itself again
    check_normalised(layer(batch(6, 3) + 100)[0])
    with torch.device("meta"):
        other = fk.nn.ActNorm(3)
    other.load_state_dict(copied.state_dict(), assign=True)
    before = other.shift.clone()
    other(batch(6, 3) + 100)
    assert torch.equal(other.shift, before)


def test_a_flag_that_another_rank_broadcast_is_heeded():
    layer = fk.nn.ActNorm(3)
    layer.initialized.fill_(True)
    x = batch(6, 3)
    assert torch.equal(layer(x)[0], x)


def test_once_initialised_the_flag_is_not_read_and_the_layer_compiles():
    layer, x = fk.nn.ActNorm(3), batch(6, 3, 2, 2)
    layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    other = fk.nn.ActNorm(3)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(torch.compile(other, fullgraph=True, backend="aot_eager")(x), layer(x))


def one_rank(rank, store, x, results):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = fk.nn.ActNorm(3)
    layer(x[:5] if rank == 0 else x[5:])
    torch.save(layer.state_dict(), f"{results}/{rank}")
    distributed.destroy_process_group()


def test_two_ranks_start_alike_from_all_of_the_batch(tmp_path):
    x = batch(16, 3, 2, 2)
    multiprocessing.spawn(one_rank, (tmp_path / "store", x, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    alone = fk.nn.ActNorm(3)
    alone(x)
    for name, value in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value)


def test_errors_name_the_shape():
    with pytest.raises(ValueError, match="channels must be an integer, at least 1; got 0"):
        fk.nn.ActNorm(0)
    for call in (fk.nn.ActNorm(3).forward, fk.nn.ActNorm(3).inverse):
        for shape in ((2, 4), (3,)):
            with pytest.raises(ValueError, match=r"x must have shape \(B, 3, \.\.\.\); got "):
                call(torch.zeros(shape))
    assert repr(fk.nn.ActNorm(3)) == "ActNorm(3)"
