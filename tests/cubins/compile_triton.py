"""Compile every Triton kernel ahead of time and print what its machine code is like, as JSON.

Run without TRITON_INTERPRET, in a process of its own; no GPU is needed. The kernels go the way of a real call, with CPU
tensors, up to the launch: so they are compiled for the very signatures and alignments that a GPU would see. To write
the committed table anew:

    python -m tests.cubins.compile_triton > tests/cubins/triton_table.json
"""

from __future__ import annotations

import collections
import importlib
import json
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

import flowkernels as fk
from flowkernels import backends
from flowkernels.ops import triton_box
from flowkernels.ops.affine_coupling import reference
from flowkernels.ops.native import launcher
from flowkernels.ops.planar.triton import PlanarBackward
from flowkernels.ops.triton_launch import Kernel

from . import sass

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
APPROXIMATE = re.compile(r"\b[a-z0-9]+\.approx[.a-z0-9]*|\bdiv\.full[.a-z0-9]*|\b[a-z0-9.]+\.ftz[.a-z0-9]*")

OPS = ("affine_coupling", "planar", "radial", "dequantize", "split", "rational_quadratic_spline")
FORMS = {
    "exp": fk.AffineForm("exp"),
    "tanh": fk.AffineForm("tanh", bound=2.0),
    "sigmoid": fk.AffineForm("sigmoid"),
    "softplus": fk.AffineForm("softplus", eps=1e-3, maximum=3.0),
    "tanh_scaled": fk.AffineForm("tanh_scaled", bound=2.0),
    "atan": fk.AffineForm("atan", bound=2.0),
    "atan_legacy": fk.AffineForm("atan_legacy", bound=2.0),
    "sigmoid_centered": fk.AffineForm("sigmoid_centered", bound=2.0),
    "softclip": fk.AffineForm("softclip", bound=2.0),
    "sigmoid_floor": fk.AffineForm("sigmoid", eps=1e-3),
    "exp_floor": fk.AffineForm("exp_floor"),
    "additive": fk.AffineForm("additive"),
    "given": fk.AffineForm("given"),
}
SPLINE = fk.SplineForm()
EVERYWHERE = ("exp", "tanh", "sigmoid", "softplus")


class Driver:
    """In the place of Triton's driver: a device per target, on which nothing can be launched."""

    target = "sm_90"

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.target)

    def get_current_stream(self, device: int) -> int:
        return 0


def run(op: str, direction: str, *arguments: object) -> Any:
    """What an op's plan.py does in one direction, by the Triton backend."""
    package = f"flowkernels.ops.{op}"
    function = getattr(importlib.import_module(f"{package}.plan"), direction)
    return function(*launcher(backends.TRITON, package), *arguments)


def call(
    form: fk.AffineForm,
    shape: tuple[int, ...] = (64, 64),
    dtype: torch.dtype = torch.float32,
    passive: int = 0,
    mask: bool = False,
    learned: bool = False,
    stride: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> None:
    """Forward and backward of one coupling, with every gradient."""
    if learned:
        form = fk.AffineForm(form.scale)
    channels = shape[1] - passive
    x = stride(torch.zeros(shape, dtype=dtype))
    raw = stride(torch.zeros((shape[0], channels * (1 if form.scale == "additive" else 2), *shape[2:]), dtype=dtype))
    kept = torch.zeros(shape[1:], dtype=torch.bool) if mask else None
    bound = torch.ones(channels) if learned else None
    y, log_det = run("affine_coupling", "forward", x, raw, None, kept, bound, form, passive, False)
    saved = y if reference.saves_output(form, False) else x
    wanted = (True, True, False, False, learned)
    run("affine_coupling", "backward", x, log_det, saved, raw, None, kept, bound, form, passive, False, wanted)


def call_stack(
    op: str,
    shape: tuple[int, int] = (1024, 64),
    depth: int = 8,
    dtype: torch.dtype = torch.float32,
    per_example: bool = False,
    inverse: bool = False,
    activation: str = "tanh",
    stride: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> None:
    """Forward and backward of one stack, with every gradient."""
    x = stride(torch.zeros(shape, dtype=dtype))
    layers = (shape[0], depth) if per_example else (depth,)
    made = {"dtype": torch.float64 if dtype == torch.float64 else torch.float32}
    vector, number = torch.zeros(*layers, shape[1], **made), torch.zeros(layers, **made)
    parameters = (vector, vector, number) if op == "planar" else (vector, number, number)
    options = (activation, 0.2, inverse) if op == "planar" else (inverse,)
    _, log_det = run(op, "forward", x, *parameters, *options)
    run(op, "backward", x, log_det, x, *parameters, *options, (True,) * 4)


def call_dequantize(
    shape: tuple[int, ...] = (64, 64),
    dtype: torch.dtype = torch.float32,
    x_dtype: torch.dtype = torch.uint8,
    levels: int = 256,
    stride: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> None:
    """Forward, backward with both gradients, and back again."""
    noise, x = stride(torch.zeros(shape, dtype=dtype)), stride(torch.zeros(shape, dtype=x_dtype))
    _, log_det = run("dequantize", "forward", noise, x, levels, 1e-5)
    run("dequantize", "backward", noise, log_det, noise, None, levels, 1e-5, (True, False))
    run("dequantize", "quantize", noise, levels, 1e-5)


def call_split(
    shape: tuple[int, ...] = (64, 64),
    dtype: torch.dtype = torch.float32,
    given: bool = True,
    given_dtype: torch.dtype | None = None,
    stride: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> None:
    """Forward and backward of the scored half of the channels, with every gradient."""
    value = stride(torch.zeros(shape, dtype=dtype)).chunk(2, 1)[1]
    pair = stride(torch.zeros(shape, dtype=given_dtype or dtype)).chunk(2, 1) if given else (None, None)
    log_prob = run("split", "forward", value, *pair)
    run("split", "backward", log_prob, value, *pair, (True,) * 3)


def call_spline(
    form: fk.SplineForm = SPLINE,
    shape: tuple[int, ...] = (256, 64),
    dtype: torch.dtype = torch.float32,
    passive: int = 32,
    mask: bool = False,
    inverse: bool = False,
    stride: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> None:
    """Forward and backward of one coupling by splines, with both gradients."""
    x = stride(torch.zeros(shape, dtype=dtype))
    raw = stride(torch.zeros((shape[0], (shape[1] - passive) * form.parameters, *shape[2:]), dtype=dtype))
    kept = torch.zeros(shape[1:], dtype=torch.bool) if mask else None
    _, log_det = run("rational_quadratic_spline", "forward", x, raw, kept, form, passive, inverse)
    wanted = (True, True, False)
    run("rational_quadratic_spline", "backward", x, log_det, x, raw, kept, form, passive, inverse, wanted)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous().t()


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def cases() -> Iterator[tuple[str, tuple[str, ...], dict[str, object]]]:
    """(name, targets, arguments of `call`)."""
    everywhere, hopper = tuple(TARGETS), ("sm_90",)
    for name, form in FORMS.items():
        yield name, everywhere if name in EVERYWHERE else hopper, {"form": form, "passive": 32}
    tanh = FORMS["tanh"]
    alternating = fk.AffineForm("tanh", bound=2.0, layout="interleaved_shift_scale")
    yield "bfloat16", everywhere, {"form": tanh, "passive": 32, "dtype": torch.bfloat16}
    yield "alternating", everywhere, {"form": alternating, "passive": 32}
    yield "float64", hopper, {"form": tanh, "passive": 32, "dtype": torch.float64}
    yield "float64 softplus", hopper, {"form": FORMS["softplus"], "passive": 32, "dtype": torch.float64}
    yield "mask", hopper, {"form": tanh, "mask": True}
    yield "learned bound", hopper, {"form": tanh, "passive": 32, "learned": True}
    yield "two features", hopper, {"form": tanh, "shape": (4096, 2), "passive": 1}
    yield "784 features", hopper, {"form": tanh, "shape": (64, 784), "passive": 392}
    yield "one program a row", hopper, {"form": tanh, "shape": (8, 8192), "passive": 4096}
    yield "chunks", hopper, {"form": tanh, "shape": (4, 131072), "passive": 65536}
    yield "image", hopper, {"form": tanh, "shape": (8, 12, 16, 16), "passive": 6}
    yield "channels_last", hopper, {"form": tanh, "shape": (8, 16, 16, 16), "passive": 8, "stride": channels_last}
    yield "transposed", hopper, {"form": tanh, "passive": 32, "stride": transposed}
    yield "misaligned", hopper, {"form": tanh, "passive": 32, "stride": misaligned}


def stack_cases() -> Iterator[tuple[str, tuple[str, ...], dict[str, object]]]:
    """(name, targets, arguments of `call_stack`)."""
    everywhere, hopper = tuple(TARGETS), ("sm_90",)
    for op in ("planar", "radial"):
        for inverse in (False, True):
            name, common = op + (" inverse" if inverse else ""), {"op": op, "inverse": inverse}
            yield name, everywhere, common
            yield f"{name}, per example", hopper, {**common, "per_example": True}
            yield f"{name}, float64", hopper, {**common, "dtype": torch.float64}
            for rows, features in ((4096, 2), (4096, 8), (64, 4096), (64, 8192)):
                yield f"{name}, {features} features", hopper, {**common, "shape": (rows, features)}
        yield f"{op}, 40 features", hopper, {"op": op, "shape": (128, 40)}
        yield f"{op}, 4096 features in float64", hopper, {"op": op, "shape": (64, 4096), "dtype": torch.float64}
        yield f"{op}, bfloat16", everywhere, {"op": op, "dtype": torch.bfloat16}
        yield f"{op}, transposed", hopper, {"op": op, "stride": transposed}
    yield "planar, leaky_relu", hopper, {"op": "planar", "activation": "leaky_relu"}
    yield "planar inverse, leaky_relu", hopper, {"op": "planar", "activation": "leaky_relu", "inverse": True}


def elementwise_cases() -> Iterator[tuple[Callable[..., None], tuple[str, tuple[str, ...], dict[str, object]]]]:
    """(function, (name, targets, its arguments))."""
    everywhere, hopper = tuple(TARGETS), ("sm_90",)
    image = (8, 3, 32, 32)
    for case in (
        ("dequantize", everywhere, {}),
        ("dequantize image", hopper, {"shape": image}),
        ("dequantize image, channels_last", hopper, {"shape": image, "stride": channels_last}),
        ("dequantize image, bfloat16", everywhere, {"shape": image, "dtype": torch.bfloat16}),
        ("dequantize float64", hopper, {"dtype": torch.float64}),
        ("dequantize many levels", hopper, {"x_dtype": torch.float32, "levels": 65536}),
        ("dequantize one program a row", hopper, {"shape": (8, 12288)}),
        ("dequantize chunks", hopper, {"shape": (4, 65536)}),
        ("dequantize transposed", hopper, {"stride": transposed}),
        ("dequantize misaligned", hopper, {"stride": misaligned}),
    ):
        yield call_dequantize, case
    for case in (
        ("split", everywhere, {}),
        ("split standard", everywhere, {"given": False}),
        ("split image", hopper, {"shape": (8, 12, 16, 16)}),
        ("split image, channels_last", hopper, {"shape": (8, 16, 16, 16), "stride": channels_last}),
        ("split bfloat16", everywhere, {"dtype": torch.bfloat16}),
        ("split bfloat16 beside float32", hopper, {"dtype": torch.bfloat16, "given_dtype": torch.float32}),
        ("split float64", hopper, {"dtype": torch.float64}),
        ("split two features", hopper, {"shape": (4096, 4)}),
        ("split one program a row", hopper, {"shape": (8, 24576)}),
        ("split chunks", hopper, {"shape": (4, 131072)}),
        ("split misaligned", hopper, {"stride": misaligned}),
    ):
        yield call_split, case


def spline_cases() -> Iterator[tuple[str, tuple[str, ...], dict[str, object]]]:
    """(name, targets, arguments of `call_spline`)."""
    everywhere, hopper = tuple(TARGETS), ("sm_90",)
    circular = fk.SplineForm(tails="circular")
    yield "spline", everywhere, {}
    yield "spline inverse", everywhere, {"inverse": True}
    yield "spline bfloat16", everywhere, {"dtype": torch.bfloat16}
    yield "spline nflows", everywhere, {"form": fk.SplineForm.nflows()}
    yield "spline zuko", hopper, {"form": fk.SplineForm.zuko()}
    yield "spline freia", hopper, {"form": fk.SplineForm.freia()}
    yield "spline freia inverse", hopper, {"form": fk.SplineForm.freia(), "inverse": True}
    yield "spline circular", hopper, {"form": circular}
    yield "spline 4 bins", hopper, {"form": fk.SplineForm(4)}
    for bins in (16, 32, 1024):
        yield f"spline {bins} bins", hopper, {"form": fk.SplineForm(bins, min_width=1e-4, min_height=1e-4)}
    yield "spline float64", hopper, {"dtype": torch.float64}
    yield "spline mask", hopper, {"passive": 0, "mask": True}
    yield "spline two features", hopper, {"shape": (4096, 2), "passive": 1}
    yield "spline one program a row", hopper, {"shape": (8, 8192), "passive": 4096}
    yield "spline chunks", hopper, {"shape": (4, 65536), "passive": 32768}
    yield "spline image", hopper, {"shape": (8, 12, 16, 16), "passive": 6}
    yield "spline image, channels_last", hopper, {"shape": (8, 16, 16, 16), "passive": 8, "stride": channels_last}
    yield "spline transposed", hopper, {"stride": transposed}
    yield "spline misaligned", hopper, {"form": circular, "stride": misaligned}


def disassemble(cubin: bytes) -> tuple[dict[str, int], list[sass.Instruction]]:
    """Resource usage of a cubin, and the instructions of its kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage, sass.instructions(text)


def widths(opcodes: list[str], name: str) -> dict[str, int]:
    """How many global accesses there are of each width in bits."""
    found = collections.Counter()
    for opcode in opcodes:
        if opcode.startswith(name + "."):
            width = re.search(r"\.[US]?(8|16|64|128|256)(?:\.|$)", opcode)
            found[int(width.group(1)) if width else 32] += 1
    return {str(width): found[width] for width in sorted(found)}


def of_an_element(code: list[sass.Instruction], elements: float) -> dict[str, float]:
    """Of a kernel without loops whose thread has so many elements; what odd divisors alone reach comes last."""
    exits = (i + 1 for i, found in enumerate(code) if found.opcode == "EXIT" and not found.predicated)
    return {"instructions per element": round(next(exits, len(code)) / elements, 1)}


def of_a_layer(code: list[sass.Instruction], name: str, elements: float) -> dict[str, float]:
    """Of a stack's kernel whose thread has so many elements of each layer."""
    if not name.endswith(("forward_kernel", "backward_kernel")):
        return {"instructions": len(code)}
    in_loop = sass.instructions_of_a_layer(code, name.split("_")[1])
    return {"instructions": len(code), "instructions per element and layer": round(in_loop / elements, 1)}


def nvidia_row(kernel: Kernel, compiled: object) -> dict[str, object]:
    usage, code = disassemble(compiled.asm["cubin"])
    opcodes = [instruction.opcode for instruction in code]
    name = kernel.kernel.__name__
    tile = next((a.tile for a in kernel.arguments if hasattr(a, "tile")), None)
    numbers = tile.rows * tile.columns if tile else kernel.arguments[-1] * kernel.arguments[-2]
    stack = name.startswith(("planar", "radial"))
    counted = {"barriers": "BAR"} if stack else {"shuffles": "SHFL"} if name.startswith("rational") else {}
    elements = numbers / (32 * kernel.warps)
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"],
        "local accesses": sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        "double": sum(bool(re.match(r"D(FMA|MUL|ADD)\b", opcode)) for opcode in opcodes),
        "shared": compiled.metadata.shared,
        "loads": widths(opcodes, "LDG"),
        "stores": widths(opcodes, "STG"),
        **(of_a_layer(code, name, elements) if stack else of_an_element(code, elements)),
        **{what: sum(found.startswith(opcode) for found in opcodes) for what, opcode in counted.items()},
        "approximate": sorted(set(APPROXIMATE.findall(compiled.asm["ptx"]))),
    }


def amd_row(compiled: object) -> dict[str, object]:
    text = compiled.asm["amdgcn"]
    names = {"registers": "vgpr_count", "vector spills": "vgpr_spill_count", "scalar spills": "sgpr_spill_count"}
    return {name: int(re.search(rf"\.{key}:\s+(\d+)", text).group(1)) for name, key in names.items()}


def machine_code() -> dict[str, object]:
    """What the machine code of each case, kernel and target is like."""
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    compiled: list[tuple[Kernel, object]] = []
    Kernel.__call__ = lambda kernel, device, *t: compiled.append((kernel, kernel.run(*t, warmup=True)))
    table = {}
    calls = [(call, case) for case in cases()] + [(call_stack, case) for case in stack_cases()]
    calls += [*elementwise_cases(), *((call_spline, case) for case in spline_cases())]
    for function, (name, targets, arguments) in calls:
        for target in targets:
            driver.target = target
            function(**arguments)
            for kernel, binary in compiled:
                short = re.sub(f"^({'|'.join(OPS)})_|_kernel$", "", binary.name)
                table[f"{name} | {short} | {target}"] = (
                    amd_row(binary) if target.startswith("gfx") else nvidia_row(kernel, binary)
                )
            compiled.clear()
    return table


def grids() -> dict[str, object]:
    """How batches are cut, for half of the features passive in float32."""
    table = {}
    for rows, features in ((64, 2), (10**7, 2), (4096, 64), (1024, 784), (64, 12288), (4, 10**6)):
        for direction in ("forward", "backward"):
            tile = triton_box.tile(features // 2, features // 2, 4, direction == "forward")
            programs = -(-rows // tile.rows) * tile.chunks
            per_thread = 4 * tile.rows * tile.columns // (32 * tile.warps)
            table[f"{rows} x {features} | {direction}"] = {
                "programs": programs, **tile._asdict(), "bytes of each tensor per thread and step": per_thread
            }  # fmt: skip
    return table


def stack_grids() -> dict[str, object]:
    """How batches are cut for planar stacks in float32."""
    table = {}
    for rows, features, depth in ((64, 2, 32), (10**7, 2, 32), (128, 40, 80), (4096, 64, 256), (64, 4096, 256)):
        plan = PlanarBackward(
            x_dtype=0, rows=rows, features=features, depth=depth, per_example=False, parameter_strides=[0, 0, 0],
            activation="tanh", negative_slope=0.2, inverse=False, saved_strides=[features, 1],
            grad_y_strides=[features, 1], grad_log_det_stride=1, of_parameters=True,
        )  # fmt: skip
        table[f"{rows} x {features}, {depth} layers"] = {
            **plan.common.tile._asdict(), "programs": plan.common.tiles,
            "programs of backward": plan.programs, "tiles that each of them keeps": plan.kept,
        }  # fmt: skip
    return table


if __name__ == "__main__":
    cut = {"grids": grids(), "grids of stacks": stack_grids()}
    result = {"triton": triton.__version__, **cut, "machine code": machine_code()}
    print(json.dumps(result, indent=1))
