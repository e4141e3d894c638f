"""Training a flow on pictures: ``flowkernels train`` and ``flowkernels sample``.

`add_arguments` and `run` here are the first command, those of `flowkernels.train.sample` the second.
"""

from . import sample
from .command import add_arguments, run

__all__ = ["add_arguments", "run", "sample"]
