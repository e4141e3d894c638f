"""Dequantization with a logit. Read check.py, reference.py, op.py, plan.py, triton.py in that order."""

from .op import dequantize, quantize

__all__ = ["dequantize", "quantize"]
