"""Peak memory of a call, and memory that is kept from one call to the next."""

from __future__ import annotations

import ctypes
import os
import sys
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


def keep_freed() -> bool:
    """Have the C library keep memory that was freed, for the rest of the process; whether it does.

    glibc returns memory to the system whenever much of it is free at the end of the heap. Who is next then pays with a
    fault for every page, up to half of a call's time, and among several that take turns that is chance.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, map_threshold = -1, -3  # as malloc.h has them; more than 32 MB is always the system's
    return mallopt is not None and mallopt(trim_threshold, 2**31 - 1) == mallopt(map_threshold, 2**25) == 1
