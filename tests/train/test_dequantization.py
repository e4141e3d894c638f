import argparse
import math

import pytest

from flowkernels.train import dequantization


def run(*words):
    parser = argparse.ArgumentParser()
    dequantization.add_arguments(parser)
    return dequantization.run(parser.parse_args([str(word) for word in words]))


def test_bits_of_each_kind_and_densities_of_whole_mass():
    fits = {name: dequantization.fit(name, 1500, 0) for name in dequantization.DEQUANTIZERS}
    entropy = dequantization.entropy()
    assert entropy < fits["variational"].bits < fits["uniform"].bits
    assert fits["none"].bits < fits["uniform"].bits
    for name in ("uniform", "variational"):
        v, density = fits[name].density
        assert math.isclose((density.sum() * (v[1] - v[0])).item(), 1, abs_tol=0.02)
        assert (fits[name].places.floor().histc(8, 0, 8) > 0).all()
    assert fits["none"].places.round(decimals=3).unique().tolist() == [i + 0.5 for i in range(8)]


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "d.png"
    assert run("--steps", 2, "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "dequantization variational:" in capsys.readouterr().out
    assert run("--steps", 0) == 2
    assert "--steps must be positive; got 0" in capsys.readouterr().err
