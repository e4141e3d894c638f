"""Fixtures for all tests: the backends of this process, and memory that shows what a kernel forgets or oversteps."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
import torch

from flowkernels import backends

from .emulation.build import emulated_cuda  # noqa: F401  a fixture

# A run of the tests is the same every time: the numbers that torch draws inside an example belong to it as well.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


class TorchGenerator:
    """torch's generator, as hypothesis seeds and restores it."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


hypothesis.register_random(TorchGenerator)


def process_backends() -> list[str]:
    """The kernel backends that this process can test on CPU tensors.

    Triton's mode is fixed when a kernel is decorated, so a process either interprets or it does not.
    """
    if backends.interpreting():
        return ["triton"]
    return ["cpu", "cuda"]


@pytest.fixture(params=process_backends())
def backend(request) -> str:
    """A kernel backend, in force during the test. The CUDA one runs in the emulation."""
    name = request.param
    if name == "cuda":
        request.getfixturevalue("emulated_cuda")
    elif backends.problem(backends.NAMES.index(name), "cpu"):
        pytest.fail(f"{name} is not built here: {backends.problem(backends.NAMES.index(name), 'cpu')}")
    return name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class GuardedMemory:
    """Stands in for torch.empty_like, empty and new_empty: memory full of NaN, with a strip before and after it."""

    STRIP = 64

    def __init__(self) -> None:
        self.storages: list[torch.Tensor] = []

    def _allocate(self, shape, stride, dtype) -> torch.Tensor:
        size = sum((n - 1) * s for n, s in zip(shape, stride)) + 1 if all(shape) else 0
        storage = torch.full((size + 2 * self.STRIP,), float("nan"), dtype=dtype)
        self.storages.append(storage)
        return storage.as_strided(shape, stride, self.STRIP)

    def empty_like(self, like, memory_format=torch.preserve_format):
        model = torch._C._VariableFunctions.empty_like(like, memory_format=memory_format)
        return self._allocate(model.shape, model.stride(), like.dtype)

    def empty(self, *size, dtype=None, device=None):
        model = torch._C._VariableFunctions.empty(*size, dtype=dtype)
        if dtype == torch.uint8:  # a workspace: bytes of NaN, and a fence of whole floats
            words = self._allocate(((model.numel() + 3) // 4,), (1,), torch.float32)
            return words.view(torch.uint8)[: model.numel()]
        return self._allocate(model.shape, model.stride(), dtype)

    def new_empty(self, like, *size, dtype=None, device=None):
        dtype = dtype or like.dtype
        if not dtype.is_floating_point:  # there is no NaN
            return torch._C.TensorBase.new_empty(like, *size, dtype=dtype)
        return self.empty(*size, dtype=dtype)

    def check(self) -> None:
        for storage in self.storages:
            assert storage[: self.STRIP].isnan().all(), "written before the start of a buffer"
            assert storage[-self.STRIP :].isnan().all(), "written past the end of a buffer"


@pytest.fixture
def guarded(monkeypatch):
    """A context in which everything that an op allocates is poisoned and fenced."""

    @contextlib.contextmanager
    def context():
        memory = GuardedMemory()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", memory.empty_like)
            patch.setattr(torch, "empty", memory.empty)
            patch.setattr(torch.Tensor, "new_empty", lambda *args, **options: memory.new_empty(*args, **options))
            yield memory
        memory.check()

    return context
