"""``flowkernels train``."""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

import torch

from . import checkpoint, data, figures
from .compare import compare
from .config import DTYPES, FLOWS, Config
from .errors import CommandError
from .progress import Progress
from .trainer import Trainer

# Of what a checkpoint decides, so that --resume can tell an option that was given from one that was not.
DEFAULTS = {"transforms": 8, "hidden": (128, 128), "batch": 128, "lr": 1e-3, "seed": 0, "dtype": "float32"}

STEPS = 1000
COMPARED = 200  # training multiplies differences of rounding, so a longer float32 comparison needs a wider tolerance
SAMPLES = 64
STOPPED = 130  # as a shell reports a program ended by Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels train``."""
    parser.add_argument("--data", choices=data.NAMES, default="digits", help="pictures to train on (default digits)")
    parser.add_argument("--data-dir", help=f"where the IDX files of Fashion-MNIST are (default {data.FASHION_DIR})")
    parser.add_argument("--flow", choices=FLOWS, default="realnvp")
    parser.add_argument("--out", type=pathlib.Path, help="directory for what is written (default runs/DATA-FLOW)")
    parser.add_argument("--steps", type=int, help=f"train until this step (default {STEPS}; {COMPARED} with --compare)")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="default 100")
    parser.add_argument("--device", default="cpu")
    for name, kind in {"transforms": int, "batch": int, "lr": float, "seed": int}.items():
        parser.add_argument(f"--{name}", type=kind, help=f"default {DEFAULTS[name]}")
    parser.add_argument("--hidden", type=int, nargs="+", help="hidden layers of each conditioner (default 128 128)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default float32")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, bit for bit")
    mode.add_argument("--overwrite", action="store_true", help="start anew where --out holds a checkpoint")
    mode.add_argument("--compare", action="store_true", help="train eager and fused from one seed; fail if they differ")


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status: 0, 1 for a comparison that failed, 2 for what cannot be done, 130 if stopped."""
    try:
        steps = args.steps if args.steps is not None else COMPARED if args.compare else STEPS
        if steps < 1 or args.checkpoint_every < 1:
            raise CommandError(
                f"--steps and --checkpoint-every must be positive; got {steps} and {args.checkpoint_every}"
            )
        out = args.out or pathlib.Path("runs") / f"{args.data}-{args.flow}"
        device = _device(args.device)
        pictures = data.load(args.data, args.data_dir)
        if args.compare:
            return 0 if compare(_config(args, pictures), pictures, device, steps, out) else 1
        trainer = _resumed(args, pictures, device, out) if args.resume else _fresh(args, pictures, device, out)
        return _train(trainer, steps, args.checkpoint_every, out)
    except CommandError as error:
        print(f"flowkernels train: {error}", file=sys.stderr)
        return 2


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None


def _config(args: argparse.Namespace, pictures: data.Pictures) -> Config:
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    settings = {**DEFAULTS, **given}
    settings["hidden"] = tuple(settings["hidden"])
    if settings["lr"] <= 0:
        raise CommandError(f"--lr must be positive; got {settings['lr']}")
    if settings["transforms"] < 1 or min(settings["hidden"]) < 1:
        raise CommandError("--transforms and --hidden must be positive")
    return Config(data=args.data, flow=args.flow, shape=pictures.shape, levels=pictures.levels, **settings)


def _fresh(args: argparse.Namespace, pictures: data.Pictures, device: torch.device, out: pathlib.Path) -> Trainer:
    path = out / checkpoint.CHECKPOINT
    if path.exists() and not args.overwrite:
        raise CommandError(f"{path} exists: --resume goes on from it, --overwrite starts anew, --out goes elsewhere")
    trainer = Trainer(_config(args, pictures), pictures, device)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, trainer.state_dict())  # so that a run killed before its first checkpoint can be resumed
    return trainer


def _resumed(args: argparse.Namespace, pictures: data.Pictures, device: torch.device, out: pathlib.Path) -> Trainer:
    state = checkpoint.load(out)
    config = Config.from_plain(state["config"])
    for name in ("data", "flow", *DEFAULTS):
        given = getattr(args, name)
        given = tuple(given) if name == "hidden" and given is not None else given
        if given is not None and given != getattr(config, name):
            raise CommandError(f"the run in {out} has {name} {getattr(config, name)}; --resume cannot make it {given}")
    trainer = Trainer(config, pictures, device)
    trainer.load_state_dict(state)
    return trainer


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C, or a SIGTERM, into a request that a step asks for; a second Ctrl-C stops at once."""
    requested = []

    def request(number, frame):
        requested.append(number)
        signal.signal(signal.SIGINT, before[0])

    before = [signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield lambda: bool(requested)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def _train(trainer: Trainer, steps: int, checkpoint_every: int, out: pathlib.Path) -> int:
    path = out / checkpoint.CHECKPOINT
    first = trainer.step
    print(f"{_described(trainer)}; steps {first + 1} to {steps}; writing to {out}", flush=True)
    metrics = checkpoint.Metrics(out / "metrics.csv", first)
    progress = Progress(first, steps)
    start = time.monotonic()
    try:
        with _stop_requests() as stop_requested:
            while trainer.step < steps:
                loss = trainer.advance()
                if not math.isfinite(loss):
                    raise CommandError(f"the loss is {loss} at step {trainer.step}: try a lower --lr")
                saving = trainer.step % checkpoint_every == 0 or trainer.step == steps
                held_out = trainer.held_out_bpd() if saving else None
                metrics.add(trainer.step, trainer.batches.epoch, loss, held_out)
                progress.show(trainer.step, f"{loss:.4f} bits/dim")
                stopping = stop_requested()
                if saving or stopping:
                    metrics.sync()
                    checkpoint.save(path, trainer.state_dict())
                if stopping:
                    break
    finally:
        progress.close()
        metrics.close()
    if trainer.step < steps:
        print(f"stopped after step {trainer.step}; to go on: flowkernels train {_resume_options(trainer, steps, out)}")
        return STOPPED
    _summarise(trainer, trainer.step - first, time.monotonic() - start, out)
    return 0


def _described(trainer: Trainer) -> str:
    config = trainer.config
    parameters = sum(p.numel() for p in trainer.flow.parameters())
    train, held_out = len(trainer.pictures.train), len(trainer.pictures.held_out)
    return (
        f"{config.flow} with {parameters:,} parameters on {config.data} ({train} pictures to train on, {held_out} held"
        f" out, {config.levels} levels), {config.dtype} on {trainer.device}"
    )


def _resume_options(trainer: Trainer, steps: int, out: pathlib.Path) -> str:
    config = trainer.config
    return f"--data {config.data} --flow {config.flow} --out {out} --steps {steps} --resume"


def _summarise(trainer: Trainer, steps: int, seconds: float, out: pathlib.Path) -> None:
    each = f", {seconds / steps * 1e3:.2f} ms a step" if steps else ""
    print(f"held-out bits per dimension {trainer.held_out_bpd():.4f}; {steps} steps in {seconds:.1f} s{each}")
    if not figures.available():
        return
    config, pictures = trainer.config, trainer.pictures
    with trainer.random.flowing():
        samples = trainer.flow.sample(SAMPLES)
    titled = {"training data": pictures.train[:SAMPLES], f"samples after {trainer.step} steps": samples}
    figures.sheets(out / "samples.png", titled, config.shape, config.levels)
    title = f"{config.flow} on {config.data}"
    figures.curves(out / "metrics.png", title, *checkpoint.read_metrics(out / "metrics.csv"))
    print(f"figures: {out / 'samples.png'}, {out / 'metrics.png'}")
