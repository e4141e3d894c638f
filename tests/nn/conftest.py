import pytest
import torch


def log_det_of_jacobian(function, x):
    """log |det| of the Jacobian of each row, by autograd."""

    def row(event):
        return function(event[None])[0].flatten()

    jacobians = [torch.autograd.functional.jacobian(row, event).reshape(event.numel(), -1) for event in x]
    return torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians])


@pytest.fixture
def check_layer():
    """Both directions undo each other, and their log-determinants are those of the Jacobians."""

    def check(layer, x, *context):
        layer, x = layer.double(), x.double()
        y, log_det = layer(x, *context)
        back, back_log_det = layer.inverse(y, *context)
        torch.testing.assert_close(back, x)
        assert log_det.shape == back_log_det.shape == (len(x),)
        assert log_det.dtype == torch.float64
        one = [c[:1] for c in context]  # every row of the tests' contexts is the same
        torch.testing.assert_close(log_det, log_det_of_jacobian(lambda v: layer(v, *one)[0], x))
        torch.testing.assert_close(back_log_det, log_det_of_jacobian(lambda v: layer.inverse(v, *one)[0], y.detach()))

    return check


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
