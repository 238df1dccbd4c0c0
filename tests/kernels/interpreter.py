"""Corrects bfloat16 in Triton's interpreter (checked with Triton 3.6.0, 3.7.1 and 3.8.0).

The interpreter stores a bfloat16 tensor as raw 16-bit words. Loads, stores, bitcasts and `where` are correct, but
arithmetic, comparisons, sums, int <-> bfloat16 and `dot` use the words as integers and return wrong numbers without an
error, and float32 to bfloat16 truncates instead of rounding. `install` widens every bfloat16 operand to float32 before
an operation and rounds the result to nearest even.
"""

from functools import wraps

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(words):
    """Convert bfloat16 words to float32."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def narrow(values):
    """Round float32 to bfloat16 words."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def is_bf16(handle) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def wide(handle):
    return TensorHandle(widen(handle.data), tl.float32) if is_bf16(handle) else handle


def install() -> None:
    """Patch the interpreter; call once, before a kernel runs."""
    if getattr(InterpreterBuilder, "bf16_is_right", False):
        return
    InterpreterBuilder.bf16_is_right = True
    # Comparisons use binary_op too; their results are not float32 and are not rounded.
    for name, num_operands in (("binary_op", 2), ("unary_op", 1), ("ternary_op", 3), ("create_fabs", 1)):
        setattr(InterpreterBuilder, name, widened(getattr(InterpreterBuilder, name), num_operands))
    InterpreterBuilder.create_dot = exact_dot(InterpreterBuilder.create_dot)
    InterpreterBuilder.cast_impl = rounding_cast(InterpreterBuilder.cast_impl)
    # Sums and maxima have separate NumPy paths.
    for name in ("sum", "min_max"):
        setattr(interpreter.ReduceOps, name, widened_reduction(getattr(interpreter.ReduceOps, name)))


def widened(operation, num_operands):
    """Wrap an operation: compute in float32, round if an operand was bfloat16 and the result is a float."""

    @wraps(operation)
    def run(self, *arguments, **options):
        had_bf16 = any(is_bf16(handle) for handle in arguments[:num_operands])
        operands = [wide(handle) for handle in arguments[:num_operands]]
        out = operation(self, *operands, *arguments[num_operands:], **options)
        if had_bf16 and out.dtype.scalar == tl.float32:
            return TensorHandle(narrow(out.data), tl.bfloat16)
        return out

    return run


def exact_dot(create_dot):
    return lambda self, a, b, *rest: create_dot(self, wide(a), wide(b), *rest)


def rounding_cast(cast_impl):
    def cast(self, source, target):
        before, after = source.dtype.scalar, target.scalar
        if before == after or tl.bfloat16 not in (before, after):
            return cast_impl(self, source, target)
        if after == tl.bfloat16:
            return TensorHandle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return wide(source) if after == tl.float32 else cast_impl(self, wide(source), target)

    return cast


def widened_reduction(reduce):
    def typed(values, dtype, shape):
        return tl.core.tensor(TensorHandle(values, dtype), tl.block_type(dtype, list(shape)) if shape else dtype)

    def run(self, operands, *arguments, **options):
        first = operands[0] if isinstance(operands, tuple) else operands
        if first.handle.dtype.scalar != tl.bfloat16:
            return reduce(self, operands, *arguments, **options)
        out = reduce(self, typed(widen(first.handle.data), tl.float32, first.shape), *arguments, **options)
        if isinstance(out, tuple | list):
            return type(out)([back(out[0]), *out[1:]])
        return back(out)

    def back(result):
        return typed(narrow(np.asarray(result.handle.data)), tl.bfloat16, result.shape)

    return run
