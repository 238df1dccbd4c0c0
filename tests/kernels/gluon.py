"""Runs a Gluon kernel on the CPU, one program after another, because Triton has no interpreter for Gluon.

Layouts are ignored: this checks which bytes results are computed from, not which thread computes them. Copies are
immediate, shared memory begins as NaN, and barriers count bytes and phases. So a test fails if a tile is read before it
was requested, or requested again while it is still in use.
"""

import inspect
import itertools
from types import FunctionType, SimpleNamespace

import torch


class Number(int):
    """An integer of the kernel, of any width."""

    def to(self, _):
        return self


class Pointer:
    """One or many addresses in the memory of a tensor."""

    def __init__(self, memory, offset):
        self.memory, self.offset = memory, offset

    @classmethod
    def of(cls, tensor):
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        return cls(tensor.as_strided((elements,), (1,), 0), tensor.storage_offset())

    def __add__(self, more):
        return Pointer(self.memory, self.offset + more)


class Shared:
    def __init__(self, data):
        self.data = data

    def index(self, i):
        return Shared(self.data[i])

    def permute(self, order):
        return Shared(self.data.permute(order))

    def store(self, values):
        assert values.dtype == self.data.dtype
        self.data.copy_(values)


class Barrier:
    """Counts the bytes still expected, and the phases completed."""

    def __init__(self):
        self.bytes_left, self.phases = 0, 0


class Barriers(list):
    index = list.__getitem__


class Descriptor:
    """A matrix in memory; TMA copies boxes of it."""

    def __init__(self, pointer, shape, strides, block_shape, layout):
        assert pointer.offset % 8 == 0 and strides[0] % 8 == 0 and strides[1] == 1, "TMA wants 16 bytes"
        self.block_shape, self.block_type = block_shape, SimpleNamespace(nbytes=2 * block_shape[0] * block_shape[1])
        self.matrix = pointer.memory.as_strided(shape, strides, pointer.offset)

    def copy_to(self, place, barrier, target):
        rows, columns = self.block_shape
        box = self.matrix[place[0] : place[0] + rows, place[1] : place[1] + columns]
        assert box.numel() > 0
        target.data.zero_()  # outside the matrix
        target.data[: box.shape[0], : box.shape[1]] = box
        barrier.bytes_left -= self.block_type.nbytes
        barrier.phases += barrier.bytes_left == 0


def expect(barrier, num_bytes):
    assert barrier.bytes_left == 0
    barrier.bytes_left = num_bytes


def wait(barrier, phase):
    assert barrier.phases & 1 != phase, "nobody asked for this tile"


def load(pointer):
    values = pointer.memory[pointer.offset]
    return values if values.dim() else Number(values)


def store(pointer, values):
    pointer.memory[pointer.offset] = values.to(pointer.memory.dtype)


def allocate(dtype, shape, _):
    if dtype == torch.int64:
        return Barriers(Barrier() for _ in range(shape[0]))
    return Shared(torch.full(shape, float("nan"), dtype=dtype))


def product(a, b, total, **_):
    return a.data.float() @ b.data.float() + total


def language(program):
    """Return a module in place of `gl`, for one program."""
    return SimpleNamespace(
        **{name: getattr(torch, name) for name in ("bfloat16", "float32", "int64", "exp2", "log2", "where")},
        program_id=lambda axis: Number(program[axis]),
        load=load,
        store=store,
        static_range=range,
        allocate_shared_memory=allocate,
        cdiv=lambda a, b: -(-a // b),
        maximum=lambda a, b: max(a, b) if isinstance(a, int) else torch.maximum(a, b),
        minimum=min,
        max=torch.amax,
        sum=torch.sum,
        full=lambda shape, value, dtype, _: torch.full(shape, value, dtype=dtype),
        zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype),
        arange=lambda begin, end, _: torch.arange(begin, end),
        convert_layout=lambda values, _: values,
        NVMMASharedLayout=SimpleNamespace(get_default_for=lambda shape, dtype: None),
        NVMMADistributedLayout=lambda *_, **__: None,
        SliceLayout=lambda *_: None,
    )


class OnCpu:
    """A Gluon kernel with the launch syntax of a real one."""

    def __init__(self, kernel):
        self.function = kernel.fn

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            given = [Pointer.of(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            bound = inspect.signature(self.function).bind(*given, **constants)
            for program in itertools.product(*map(range, grid)):
                bind(self.function, program)(*bound.args, **bound.kwargs)

        return launch


def bind(function, program):
    """Return the function with this module's language instead of Gluon's."""
    ours = {
        "gl": language(program),
        "tma": SimpleNamespace(
            make_tensor_descriptor=Descriptor,
            async_copy_global_to_shared=lambda descriptor, *rest: descriptor.copy_to(*rest),
        ),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=lambda barrier, count: None,
            invalidate=lambda barrier: None,
            expect=expect,
            wait=wait,
        ),
        "warpgroup_mma": product,
        "warpgroup_mma_wait": lambda left, deps: deps[0],
        "fence_async_shared": lambda: None,
        "barrier": lambda: None,
    }
    helpers = {
        name: bind(value.fn, program)
        for name, value in function.__globals__.items()
        if name in function.__code__.co_names and hasattr(value, "is_gluon") and hasattr(value, "fn")
    }
    return FunctionType(function.__code__, function.__globals__ | helpers | ours, function.__name__)
