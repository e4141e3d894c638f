"""Files that a killed run leaves whole: checkpoint.pt and metrics.csv."""

from __future__ import annotations

import os
import pathlib

import torch

from .errors import CommandError

CHECKPOINT = "checkpoint.pt"
FORMAT = 2


def save(path: pathlib.Path, state: dict) -> None:
    """Write a checkpoint under another name and rename it: at any moment `path` is the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Write a text file as `save` writes a checkpoint."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def load(path: pathlib.Path) -> dict:
    """Read a checkpoint onto the CPU; `path` may be the directory that holds it.

    Raises:
        CommandError: if there is none, or it is not one of ours.
    """
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise CommandError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CommandError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CommandError(f"{path} is not a checkpoint of flowkernels train (format {FORMAT})")
    return state


class Metrics:
    """metrics.csv, one row per step: appended and flushed as the run goes, cut back to a checkpoint on resuming.

    Columns: step; epoch; train_UNIT, the loss of the step's batch; held_out_UNIT, where it was measured. The unit is
    bpd, bits per dimension, or nats. Numbers are written in full, so that two files are equal if the runs were.
    """

    def __init__(self, path: pathlib.Path, step: int, unit: str) -> None:
        """Keep the rows up to `step` of the file at `path`, if there are any."""
        kept = _rows_until(path, step) if step else []
        replace_text(path, f"step,epoch,train_{unit},held_out_{unit}\n" + "".join(kept))
        self._file = open(path, "a")  # noqa: SIM115  closed by close()

    def add(self, step: int, epoch: int, train: float, held_out: float | None) -> None:
        self._file.write(f"{step},{epoch},{train!r},{'' if held_out is None else repr(held_out)}\n")
        self._file.flush()

    def sync(self) -> None:
        """Reach the disk: a checkpoint must not get there before the rows that lead to it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _rows_until(path: pathlib.Path, step: int) -> list[str]:
    rows = path.read_text().splitlines(keepends=True)[1 : step + 1] if path.is_file() else []
    numbers = [row.split(",", 1)[0] for row in rows]
    if numbers != [str(i + 1) for i in range(step)]:
        raise CommandError(f"{path} should hold a row for each of the {step} steps of the checkpoint; it does not")
    return rows


def read_metrics(path: pathlib.Path) -> tuple[list[int], list[float], list[tuple[int, float]]]:
    """Steps, their losses, and (step, loss of held-out data) where measured."""
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    held_out = [(int(row[0]), float(row[3])) for row in rows if row[3]]
    return [int(row[0]) for row in rows], [float(row[2]) for row in rows], held_out
