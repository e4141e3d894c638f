import pytest
import torch

import flowkernels as fk


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_become_channels_and_come_back_to_the_bit(factor, memory_format):
    x = torch.randn(2, 3, 6, 12).contiguous(memory_format=memory_format)
    layer = fk.nn.Squeeze(factor)
    y, log_det = layer(x, torch.zeros(2))  # a context is accepted
    assert y.shape == (2, 3 * factor**2, 6 // factor, 12 // factor)
    assert torch.equal(y, torch.nn.functional.pixel_unshuffle(x, factor))
    back, back_log_det = layer.inverse(y)
    assert torch.equal(back, x)
    assert torch.equal(log_det, torch.zeros(2))
    assert torch.equal(back_log_det, torch.zeros(2))


def test_log_det_and_any_dtype(check_layer):
    check_layer(fk.nn.Squeeze(), torch.randn(2, 2, 2, 4))
    y, log_det = fk.nn.Squeeze()(torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4))
    assert y.dtype == torch.uint8
    assert log_det.dtype == torch.float32


def test_errors_name_the_shape():
    for factor in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"factor must be an integer, at least 1; got {factor}"):
            fk.nn.Squeeze(factor)
    with pytest.raises(ValueError, match=r"multiples of factor=2; got x of shape \(1, 1, 4, 5\)"):
        fk.nn.Squeeze()(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"multiple of factor² = 4; got y of shape \(1, 3, 2, 2\)"):
        fk.nn.Squeeze().inverse(torch.zeros(1, 3, 2, 2))


def test_compiles_and_prints():
    layer, x = fk.nn.Squeeze(), torch.randn(2, 3, 4, 4)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], layer(x)[0])
    assert repr(layer) == "Squeeze(factor=2)"
