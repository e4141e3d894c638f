"""Peak memory of a call."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch's allocators held during a call beyond what they held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports on standard error that it starts and stops
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = run()
    del kept
    held = peak = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
