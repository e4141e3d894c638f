"""What a step and samples cost, measured in a process of its own: no other run has grown its memory or warmed it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable

import torch

from .. import backends
from .config import Config
from .pictures import Pictures
from .trainer import Trainer

WARMING, TIMED = 2, 3
SAMPLES = 64  # at once, as in the UvA tutorial


def measure(config: Config, device: torch.device, request: str) -> dict[str, float]:
    """Of an image flow under a request for a backend, by name.

    `step_ms`, the median of few; `peak_mb`, the most memory that steps held beyond what the process did before there
    was a model, absent where the system does not tell; `images_per_second`, of samples.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, config, str(device), request, torch.get_num_threads()).result()


def _measure(config: Config, device_name: str, request: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    noise = torch.randint(config.levels, (config.batch, *config.shape), dtype=torch.uint8)
    before = _resident("VmRSS") or 0
    with backends.backend(request):
        trainer = Trainer(config, Pictures(noise, noise, config.levels), device)
        found = {"step_ms": 1e3 * _median_seconds(trainer.advance)}
        if device.type == "cuda":
            found["peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        elif peak := _resident("VmHWM"):
            found["peak_mb"] = (peak - before) / 1e6
        trainer.model.eval()
        found["images_per_second"] = SAMPLES / _median_seconds(lambda: trainer.model.sample(SAMPLES).cpu())
    return found


def _median_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(WARMING + TIMED):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMING:])


def _resident(name: str) -> int | None:
    """Bytes of memory that this process holds (VmRSS), or the most that it ever did (VmHWM), where Linux tells."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))
