"""``flowkernels train``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from . import checkpoint, data, report, series
from .compare import compare
from .config import BINARIZE, DTYPES, IMAGE_FLOWS, SETTINGS, STEPS, Config, annealing, build_model, settings
from .errors import CommandError
from .pictures import FASHION_DIR
from .progress import Progress
from .trainer import Trainer

# What a checkpoint decides, so that --resume can tell an option that was given from one that was not.
DECIDED = tuple(field for field in Config.__dataclass_fields__ if field not in ("data", "flow", "shape", "levels"))
SERIES = ("data", "flow", "depth", "seed")  # options that take several values, for a run of each combination

# Training multiplies differences of rounding, so a longer float32 comparison needs a wider tolerance.
COMPARED, COMPARED_IMAGES = 200, 20
STOPPED = 130  # as a shell reports a program ended by Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels train``."""
    add = parser.add_argument
    known = f"{', '.join(data.NAMES)}, or a folder of images (default digits)"
    add("--data", type=_data, nargs="+", default=["digits"], metavar="DATA", help=known)
    where = "the IDX files of Fashion-MNIST or MNIST, or the batches of CIFAR-10,"
    add("--data-dir", help=f"where {where} are (default {FASHION_DIR})")
    flows = tuple(SETTINGS)
    described = f"{', '.join(flows)} (default realnvp)"
    add("--flow", choices=flows, nargs="+", default=["realnvp"], metavar="FLOW", help=described)
    add("--out", type=pathlib.Path, help="directory for what is written (default runs/DATA-FLOW)")
    compared = f"with --compare {COMPARED}, image flows {COMPARED_IMAGES}"
    add("--steps", type=int, help=f"train until this step (default {_defaults(STEPS)}; {compared})")
    add("--checkpoint-every", type=int, default=100, metavar="STEPS", help="default 100")
    add("--device", default="cpu", help="default cpu")
    add("--seed", type=int, nargs="+", help="default 0")
    add("--depth", type=int, nargs="+", metavar="K", help="the number of planar or radial maps (default 8)")
    for name, kind in {"transforms": int, "scales": int, "batch": int, "lr": float, "latent": int}.items():
        values = {flow: known[name] for flow, known in SETTINGS.items() if name in known}
        add(f"--{name}", type=kind, help=f"default {_defaults(values)}")
    add("--hidden", type=int, nargs="+", help="hidden layers of each conditioner, or of the encoder; glow: one")
    add("--binarize", choices=BINARIZE, help="pixels drawn from their grey levels (default), or thresholded at 1/2")
    add(
        "--anneal",
        type=int,
        metavar="STEPS",
        help="beta = min(1, 0.01 + t/STEPS); 0: none (default 1/2 of the steps; vae: 1/50)",
    )
    few = f"{' '.join(IMAGE_FLOWS)}: 0"
    add("--decay", type=int, metavar="STEPS", help=f"over which lr falls to 1/100; 0: never (default all; {few})")
    add("--epoch-decay", type=float, metavar="FACTOR", help="of lr at each epoch of an image flow (default 0.99)")
    add("--clip", type=float, metavar="NORM", help="longest gradient; 0: any (default 0; image flows: 1)")
    add("--amp", action="store_const", const=True, help="bfloat16 where torch's autocast takes it")
    few = "measure an image flow on the first N held-out pictures (default 1000)"
    add("--held-out", type=int, metavar="N", help=few)
    estimates = f"of the final estimates (default {report.SAMPLES_HELP})"
    add("--samples", "--importance-samples", type=int, help=estimates)
    add("--dtype", choices=tuple(DTYPES), help="default float32")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, bit for bit")
    mode.add_argument("--overwrite", action="store_true", help="start anew where --out holds a checkpoint")
    mode.add_argument("--compare", action="store_true", help="train eager and fused from one seed; fail if they differ")


def _data(name: str) -> str:
    """The name of data, or the path of a folder in full: a run goes on wherever it is resumed from."""
    if name in data.NAMES:
        return name
    if not pathlib.Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"{name!r} is neither a folder of images nor one of {', '.join(data.NAMES)}")
    return str(pathlib.Path(name).resolve())


def _defaults(values: dict[str, Any]) -> str:
    """'1000 realnvp, 4000 planar radial': the default of each flow."""
    by_value: dict[Any, list[str]] = {}
    for flow, value in values.items():
        by_value.setdefault(value, []).append(flow)
    return ", ".join(f"{value} for {' '.join(flows)}" for value, flows in by_value.items())


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status: 0, 1 for a comparison that failed, 2 for what cannot be done, 130 if stopped."""
    try:
        _check(args)
        runs = _runs(args)
        if args.compare:
            return _compare(runs)
        known = {name: data.load(name, args.data_dir) for name in dict.fromkeys(args.data)}
        for each in runs:  # all of them, so that nothing is trained for minutes before a refusal
            each.loaded = known[each.data]
            build_model(_config(each))
            _check_free(each)
        for number, each in enumerate(runs, 1):
            if len(runs) > 1:
                print(f"--- {number} of {len(runs)}: {each.out}", flush=True)
            if (status := _train(each)) != 0:
                return status
        if len(runs) > 1:
            series.write(_root(args), runs)
        return 0
    except CommandError as error:
        print(f"flowkernels train: {error}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> None:
    for name in ("steps", "checkpoint_every", "samples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CommandError(f"{_option(name)} must be positive; got {value}")
    _device(args.device)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None


def _root(args: argparse.Namespace) -> pathlib.Path:
    return args.out or pathlib.Path("runs") / "-".join([*(pathlib.Path(name).name for name in args.data), *args.flow])


def _runs(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each run, in which those that take several values have one."""
    choices = [getattr(args, name) or [None] for name in SERIES]
    runs = []
    for chosen in itertools.product(*choices):
        each = argparse.Namespace(**{**vars(args), **dict(zip(SERIES, chosen))})
        compared = COMPARED_IMAGES if each.flow in IMAGE_FLOWS else COMPARED
        each.steps = args.steps or (compared if args.compare else STEPS[each.flow])
        varied = [
            f"{name}{value}" if name in ("depth", "seed") else pathlib.Path(value).name
            for name, value, values in zip(SERIES, chosen, choices)
            if len(values) > 1
        ]
        each.out = _root(args) / "-".join(varied)
        each.series = args
        runs.append(each)
    return runs


def _compare(runs: Sequence[argparse.Namespace]) -> int:
    if len(runs) > 1:
        raise CommandError(f"--compare trains one flow on one set of data; got {len(runs)} combinations")
    (args,) = runs
    if args.amp:
        raise CommandError("--compare is of float32 or float64: the rounding of --amp is larger than what it looks for")
    args.loaded = data.load(args.data, args.data_dir)
    return 0 if compare(_config(args), args.loaded, _device(args.device), args.steps, args.out) else 1


def _config(args: argparse.Namespace) -> Config:
    chosen = settings(args.data, args.flow)
    given = {name: getattr(args, name) for name in DECIDED if getattr(args, name) is not None}
    for name, value in given.items():
        if name not in chosen:
            raise CommandError(f"{_option(name)} means nothing for --flow {args.flow} on {args.data}; got {value}")
    chosen = {**chosen, **given}
    if "hidden" in chosen:
        chosen["hidden"] = tuple(chosen["hidden"])
    if "anneal" in chosen and chosen["anneal"] is None:
        chosen["anneal"] = annealing(args.flow, args.steps)
    if "decay" in chosen and chosen["decay"] is None:
        chosen["decay"] = args.steps
    _check_settings(chosen)
    return Config(data=args.data, flow=args.flow, shape=args.loaded.shape, levels=args.loaded.levels, **chosen)


LEAST = {
    **dict.fromkeys(("transforms", "hidden", "latent", "scales"), 1),
    "held_out": 2,  # for a standard error
    **dict.fromkeys(("depth", "anneal", "decay", "clip"), 0),
}


def _check_settings(chosen: dict[str, Any]) -> None:
    for name in ("lr", "epoch_decay"):
        if not chosen.get(name, 1) > 0:
            raise CommandError(f"{_option(name)} must be positive; got {chosen[name]}")
    for name, least in LEAST.items():
        values = chosen.get(name, least)
        for value in values if isinstance(values, tuple) else [values]:
            if not value >= least:
                raise CommandError(f"{_option(name)} must be at least {least}; got {value}")
    if "scales" in chosen and len(chosen["hidden"]) != 1:
        raise CommandError(f"--hidden must be one number for --flow glow; got {chosen['hidden']}")
    if chosen["amp"] and chosen["dtype"] != "float32":
        raise CommandError(f"--amp is for --dtype float32; got {chosen['dtype']}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_free(args: argparse.Namespace) -> None:
    path = args.out / checkpoint.CHECKPOINT
    if path.exists() and not args.overwrite and not args.resume:
        raise CommandError(f"{path} exists: --resume goes on from it, --overwrite starts anew, --out goes elsewhere")
    if args.resume and not path.exists() and args.out == _root(args.series):
        raise CommandError(f"no checkpoint at {path}")


def _fresh(args: argparse.Namespace) -> Trainer:
    trainer = Trainer(_config(args), args.loaded, _device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    report.forget(args.out)
    # So that a run that is killed before its first checkpoint can be resumed.
    checkpoint.save(args.out / checkpoint.CHECKPOINT, trainer.state_dict())
    return trainer


def _resumed(args: argparse.Namespace) -> Trainer:
    state = checkpoint.load(args.out)
    config = Config.from_plain(state["config"])
    for name in ("data", "flow", *DECIDED):
        given = getattr(args, name)
        given = tuple(given) if name == "hidden" and given is not None else given
        if given is not None and given != getattr(config, name):
            raise CommandError(
                f"the run in {args.out} has {name} {getattr(config, name)}; --resume cannot make it {given}"
            )
    trainer = Trainer(config, args.loaded, _device(args.device))
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


def _train(args: argparse.Namespace) -> int:
    """Train one model from its checkpoint, if it has one, or from the start."""
    started = args.resume and (args.out / checkpoint.CHECKPOINT).exists()
    trainer = _resumed(args) if started else _fresh(args)
    first, steps = trainer.step, args.steps
    print(f"{report.described(trainer)}; steps {first + 1} to {steps}; writing to {args.out}", flush=True)
    seconds = _advance(trainer, args)
    if trainer.step < steps:
        print(f"stopped after step {trainer.step}; to go on: flowkernels train {_resume_options(args.series)}")
        return STOPPED
    report.write(trainer, args.out, args.samples, seconds)
    return 0


def _advance(trainer: Trainer, args: argparse.Namespace) -> list[float]:
    """Train up to the last step, or until asked to stop; returns the seconds that each step took."""
    metrics = checkpoint.Metrics(args.out / "metrics.csv", trainer.step, trainer.objective.unit)
    progress = Progress(trainer.step, args.steps)
    stopping, seconds = False, []
    try:
        with _stop_requests() as stop_requested:
            while trainer.step < args.steps and not stopping:
                start = time.perf_counter()
                loss = trainer.advance()
                seconds.append(time.perf_counter() - start)
                saving = trainer.step % args.checkpoint_every == 0 or trainer.step == args.steps
                metrics.add(trainer.step, trainer.batches.epoch, loss, trainer.held_out() if saving else None)
                progress.show(trainer.step, f"{loss:.4f} {trainer.objective.unit}")
                stopping = stop_requested()
                if saving or stopping:
                    metrics.sync()
                    checkpoint.save(args.out / checkpoint.CHECKPOINT, trainer.state_dict())
    finally:
        progress.close()
        metrics.close()
    return seconds


def _resume_options(args: argparse.Namespace) -> str:
    """The options that go on with a run, or a series: those given, and where it lies."""
    names = ("data", "data_dir", "flow", "device", "steps", "samples", *DECIDED)
    words = ["--out", _root(args)]
    for name in dict.fromkeys(names):
        value = getattr(args, name)
        if value is not None:
            words += [
                _option(name),
                *(value if isinstance(value, (list, tuple)) else [value] if value is not True else []),
            ]
    return shlex.join([*map(str, words), "--resume"])
