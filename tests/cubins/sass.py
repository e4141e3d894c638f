"""Reading what `cuobjdump -sass` prints: instructions, and the loops they form."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*)", re.MULTILINE)
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
SHORT = 100  # instructions; loops within a layer (the inverse's steps in float32, sums over threads) have fewer


class Instruction(NamedTuple):
    address: int
    predicated: bool
    opcode: str
    operands: str


def instructions(text: str) -> list[Instruction]:
    return [
        Instruction(int(address, 16), bool(predicate), opcode, operands)
        for address, predicate, opcode, operands in LINE.findall(text)
    ]


def loops(code: list[Instruction]) -> list[tuple[range, int]]:
    """The addresses between a branch backwards and its target, and how many instructions lie there."""
    found = []
    for branch in code:
        target = TARGET.search(branch.operands) if branch.opcode.startswith("BRA") else None
        if target and int(target[1], 16) < branch.address:
            body = range(int(target[1], 16), branch.address + 1)
            found.append((body, sum(instruction.address in body for instruction in code)))
    return found


def instructions_of_a_layer(code: list[Instruction], direction: str) -> int:
    """What a thread of a stack's kernel has for one layer, paths that few rows take among it.

    Forward's longest loop is that over layers. Backward's are nested, tiles of rows around segments of layers around
    layers: of the innermost the longest goes backwards, another computes what was not kept.
    """
    found = [(body, length) for body, length in loops(code) if length >= SHORT]
    if direction == "backward":
        around = [a for (a, _), (b, _) in itertools.permutations(found, 2) if b.start in a and b[-1] in a]
        found = [(body, length) for body, length in found if body not in around]
    return max(length for _, length in found)
