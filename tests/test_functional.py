"""The public operations: what they refuse, and how they say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flowkernels as fk

X, RAW = torch.zeros(4, 6), torch.zeros(4, 12)
TANH = fk.AffineForm("tanh", bound=2.0)

REFUSED = {
    "x is no tensor": (TypeError, r"x must be a tensor; got ndarray", np.zeros((4, 6)), RAW, {}),
    "raw is no tensor": (TypeError, r"raw must be a tensor or a \(scale, shift\) pair", X, 3.0, {}),
    "a triple": (TypeError, r"raw must be a tensor or a \(scale, shift\) pair of tensors; got tuple", X, (X, X, X), {}),
    "sparse": (TypeError, "x must be a dense tensor; got layout torch.sparse_coo", X.to_sparse(), RAW, {}),
    "integers": (TypeError, "x has dtype torch.int64; supported are torch.float32", X.long(), RAW, {}),
    "float64 raw": (TypeError, "raw has dtype float64 and x has torch.float32", X, RAW.double(), {}),
    "half raw": (TypeError, "raw must be float64 or float32; got torch.float16", X.double(), RAW.half(), {}),
    "two dtypes": (TypeError, "one dtype; got torch.float32 and torch.float16", X, (X, X.half()), {}),
    "one dimension": (ValueError, r"a batch and a channel dimension; got shape \(6,\)", X[0], RAW, {}),
    "raw too narrow": (
        ValueError,
        r"raw must have shape \(4, 12\) for x of shape \(4, 6\).*got \(4, 11\)",
        X,
        RAW[:, 1:],
        {},
    ),
    "raw of another batch": (ValueError, r"got \(3, 12\)", X, RAW[1:], {}),
    "shift too narrow": (ValueError, r"shift must have shape \(4, 6\).*got \(4, 5\)", X, (X, X[:, 1:]), {}),
    "too many passive": (ValueError, "at most the 6 channels of x; got 7", X, RAW, {"passive": 7}),
    "passive is a float": (TypeError, r"passive must be an integer or None; got 1\.0", X, RAW, {"passive": 1.0}),
    "passive is a bool": (TypeError, "passive must be an integer or None; got True", X, RAW, {"passive": True}),
    "inverse is a number": (TypeError, "inverse must be True or False; got 2", X, RAW, {"inverse": 2}),
    "mask and passive": (
        ValueError,
        "mask and passive exclude each other",
        X,
        RAW,
        {"mask": torch.ones(6, dtype=torch.bool), "passive": 2},
    ),
    "float mask": (TypeError, "mask must be boolean, True = passive.*torch.float32", X, RAW, {"mask": torch.ones(6)}),
    "mask is a list": (TypeError, "mask must be a tensor; got list", X, RAW, {"mask": [True] * 6}),
    "mask of another event": (
        ValueError,
        r"mask of shape \(5,\) does not broadcast to the event shape \(6,\)",
        X,
        RAW,
        {"mask": torch.ones(5, dtype=torch.bool)},
    ),
    "no bound": (ValueError, "'tanh' needs a bound.*got neither", X, RAW, {"form": fk.AffineForm("tanh")}),
    "two bounds": (ValueError, "bound=2.0 already", X, RAW, {"form": TANH, "bound": torch.ones(6)}),
    "useless bound": (ValueError, "bound means nothing for scale 'exp'", X, RAW, {"bound": torch.ones(6)}),
    "bound is a float": (TypeError, "bound must be a tensor; got float", X, RAW, {"bound": 2.0}),
    "integer bound": (
        TypeError,
        "bound must be floating point; got torch.int64",
        X,
        RAW,
        {"form": fk.AffineForm("tanh"), "bound": torch.ones(6, dtype=torch.int64)},
    ),
    "bound too short": (
        ValueError,
        r"bound must have shape \(6,\).*got \(5,\)",
        X,
        RAW,
        {"form": fk.AffineForm("tanh"), "bound": torch.ones(5)},
    ),
    "form is a string": (TypeError, "form must be an AffineForm; got str", X, RAW, {"form": "exp"}),
    "another device": (TypeError, "raw is on meta and x on cpu", X, RAW.to("meta"), {}),
    "additive pair": (ValueError, "shift alone", X, (X, X), {"form": fk.AffineForm("additive")}),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, backend):
    error, message, x, raw, options = REFUSED[case]
    with fk.backend(backend):
        fk.affine_coupling(X, RAW)  # what is remembered of a good call must not let a bad one through
        with pytest.raises(error, match=message):
            fk.affine_coupling(x, raw, **options)


BAD_FORMS = {
    "unknown scale": ({"scale": "exponential"}, "scale must be one of exp, tanh.*got 'exponential'"),
    "unknown order": ({"order": "both"}, "order must be one of scale_first, shift_first; got 'both'"),
    "unknown layout": ({"layout": "halves"}, "layout must be one of .*got 'halves'"),
    "useless constant": ({"scale": "exp", "eps": 1e-3}, "eps means nothing for scale='exp'; got eps=0.001"),
    "negative bound": ({"scale": "tanh", "bound": -1.0}, r"bound must be at least 1e-30 and finite; got -1\.0"),
    "tiny bound": ({"scale": "tanh", "bound": 1e-39}, "bound must be at least 1e-30"),
    "bool bound": ({"scale": "tanh", "bound": True}, "bound must be a number; got True"),
    "NaN": ({"scale": "sigmoid", "offset": float("nan")}, "offset must be a number; got nan"),
    "eps of 1": ({"scale": "exp_floor", "eps": 1.0}, r"eps is out of range for scale='exp_floor'; got 1\.0"),
    "maximum of 0": ({"scale": "softplus", "maximum": 0.0}, r"maximum must be positive; got 0\.0"),
    "prescale": ({"prescale": float("inf")}, "prescale must be finite; got inf"),
    "reciprocal": ({"reciprocal": 1}, "reciprocal must be True or False; got 1"),
}


@pytest.mark.parametrize("case", BAD_FORMS)
def test_bad_form(case):
    arguments, message = BAD_FORMS[case]
    with pytest.raises(ValueError, match=message):
        fk.AffineForm(**arguments)


def test_forms_of_equal_numbers_are_one_form():
    forms = {fk.AffineForm("tanh", bound=b) for b in (2, 2.0, np.float32(2))}
    assert len(forms) == 1
    assert forms.pop().spec == "scale=tanh bound=2.0"


def test_a_backend_that_cannot_run_says_why_and_names_the_others():
    with fk.backend("triton"), pytest.raises(fk.BackendError) as caught:
        fk.affine_coupling(X, RAW)
    message = str(caught.value)
    assert "backend 'triton' was requested and cannot run on cpu" in message
    for name in ("reference: available", "triton: it needs a GPU tensor", "cuda: "):
        assert name in message
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, triton, cuda; got 'gpu'"):
        fk.backend("gpu").__enter__()
