"""The log-density of what a split factors out. Read check.py, reference.py, plan.py, triton.py in that order."""

from ..operator import Operator

split = Operator(__name__, ("out", "mean?", "log_std?"), (), ("log_prob",))

__all__ = ["split"]
