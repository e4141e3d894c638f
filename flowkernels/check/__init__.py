"""``flowkernels check``: the maximal error of every operation on every backend that can run, against float64."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
