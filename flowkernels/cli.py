"""The command ``flowkernels``: a word that chooses a command, and the options of that command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .version import __version__

# Each module has `add_arguments(parser)` and `run(args) -> exit status`, and is imported when its command is called.
COMMANDS = {
    "bench": ("flowkernels.bench.command", "time the fused operations against eager PyTorch, torch.compile and others"),
    "check": ("flowkernels.check", "compare every operation on every backend with float64"),
    "info": ("flowkernels.info", "print versions, what was built, and which backends run here"),
    "train": ("flowkernels.train", "train a flow on images or points, or fit it to a density"),
    "density": ("flowkernels.train.density", "integrate and draw the densities of random planar and radial flows"),
    "dequantization": ("flowkernels.train.dequantization", "fit a flow to whole numbers with and without noise"),
    "sample": ("flowkernels.train.sample", "draw samples from a trained flow"),
}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = _parser().parse_args(arguments[:1]).command
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(f"flowkernels {name}", description=summary[0].upper() + summary[1:] + ".")
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(arguments[1:]))
    except KeyboardInterrupt:
        print(f"flowkernels {name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:16}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "flowkernels",
        description="Fused kernels for normalizing flows.",
        epilog=f"commands:\n{lines}\n\nflowkernels COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do; options follow it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
