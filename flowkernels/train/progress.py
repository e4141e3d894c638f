"""A progress line on standard error."""

from __future__ import annotations

import sys
import time


class Progress:
    """Rewrites one line where standard error is a terminal; elsewhere prints ten lines in all."""

    WIDTH = 24

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()

    def show(self, step: int, text: str) -> None:
        """Say that `step` is done."""
        now = time.monotonic()
        tenth = max(1, (self.last - self.first) // 10)
        done = step == self.last
        if self.terminal:
            if now - self.shown < 0.1 and not done:
                return
        elif (step - self.first) % tenth and not done:
            return
        self.shown = now
        filled = self.WIDTH * step // self.last
        left = (now - self.started) / (step - self.first) * (self.last - step)
        bar = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}]"
        line = f"{bar} step {step}/{self.last}  {text}  {left:.0f} s left"
        if self.terminal:
            line = f"\r{line}\x1b[K"  # clears what a longer line left
        print(line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
