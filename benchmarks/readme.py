"""Rewrites the README's tables of speed-ups: ``flowkernels bench --json F``, then ``python benchmarks/readme.py F``.

The sentences around the tables are not touched; what they need is printed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"

# A table's columns after the first, by the start of its heading: the mode and whom it is against, in brackets a second.
TABLES = {
    "| batch x features, scale map": [
        (mode, (rival,)) for mode in ("forward", "forward+backward") for rival in ("eager", "compile")
    ],
    "| | forward | forward+backward | training": [
        (mode, ("normflows", "eager"))
        for mode in ("forward", "forward+backward", "training step", "training step, fused Adam")
    ],
    "| | forward | inverse": [(mode, ("nflows", "eager")) for mode in ("forward", "inverse", "forward+backward")],
    "| | training step": [(mode, ("eager",)) for mode in ("training step", "loss and gradients")],
}


def cells(found: dict, workload: str, columns: list) -> str:
    row = [workload]
    for mode, rivals in columns:
        if (workload, mode) not in found:
            raise SystemExit(f"the run has no {mode} of {workload!r}: README.md is as it was")
        ratios = []
        for rival in rivals:
            speed_up = found[workload, mode].get(rival)
            if speed_up is None and rival != "compile":  # which a run leaves out for most
                raise SystemExit(f"the run has no {rival} for {mode} of {workload!r}: README.md is as it was")
            ratios.append(f"{speed_up['median']:.1f}x" if speed_up else "")
        row.append(ratios[0] + "".join(f" ({text})" for text in ratios[1:]))
    return f"| {' | '.join(row)} |"


def main(path: str) -> None:
    run = json.loads(Path(path).read_text())
    found = {(r["workload"], r["mode"]): r["speed_up"] for r in run["results"]}
    columns, lines = None, []
    for line in README.read_text().splitlines():
        heading = next((start for start in TABLES if line.startswith(start)), None)
        if heading:
            columns = TABLES[heading]
        elif not line.startswith("|"):
            columns = None
        name = re.match(r"\| ([^|]+) \|", line)
        if columns and not heading and name and not name[1].startswith("--"):
            line = cells(found, name[1], columns)
        lines.append(line)
    README.write_text("\n".join(lines) + "\n")
    for mean in run["means"]:
        print(f"{mean['op']} {mean['mode']}: {mean['value']:.2f}x {mean['over']}, {mean['count']} workloads")


if __name__ == "__main__":
    main(sys.argv[1])
