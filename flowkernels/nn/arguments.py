"""Checks of the numbers that layers and models are built from."""

from __future__ import annotations


def whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}; got {value!r}")
