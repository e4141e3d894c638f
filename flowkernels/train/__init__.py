"""Training a flow: ``flowkernels train``, ``flowkernels sample`` and ``flowkernels density``.

`add_arguments` and `run` here are the first command, those of the modules `sample` and `density` the others.
"""

from . import density, dequantization, sample
from .command import add_arguments, run

__all__ = ["add_arguments", "density", "dequantization", "run", "sample"]
