"""Float vectors for Numba kernels, one lane a channel: LLVM vectors of exactly the head's width, no compiler needed.

A kernel takes ``lanes(D)``, a tuple of D zeros: its *type* carries the width, so Numba specialises (and caches on disk)
one kernel a head width, and every width works. Loads and stores address flat float32 arrays.
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
# Re-association and contraction, but NaN and infinity keep their meaning.
_FLAGS = ("contract", "reassoc", "nsz", "arcp")


class VectorType(types.Type):
    """``width`` float32 lanes in a register."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Vector({width})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.width))


def lanes(width: int) -> Tuple[np.float32, ...]:
    """What tells a kernel its vector width."""
    return (np.float32(0),) * width


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, width: int) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(_FLOAT, width).as_pointer())


def _splat(builder: Any, scalar: Any, width: int) -> Any:
    kind = ir.VectorType(_FLOAT, width)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT32, 0))
    index = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), index)


@intrinsic
def vzero(typing: Any, like: Any) -> Any:
    """A vector of zeros as wide as the tuple ``like``."""
    kind = VectorType(like.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(_FLOAT, kind.width), [0.0] * kind.width)

    return kind(like), generate


@intrinsic
def vload(typing: Any, array: Any, offset: Any, like: Any) -> Any:
    """array[offset : offset + width]."""
    kind = VectorType(like.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], args[0], args[1], kind.width), align=4)

    return kind(array, types.intp, like), generate


@intrinsic
def vstore(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """array[offset : offset + width] = vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _address(context, builder, signature.args[0], args[0], args[1], vector.width)
        builder.store(args[2], target, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def vadd_at(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """array[offset : offset + width] += vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _address(context, builder, signature.args[0], args[0], args[1], vector.width)
        builder.store(builder.fadd(builder.load(target, align=4), args[2], flags=_FLAGS), target, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def vscale(typing: Any, vector: Any, scalar: Any) -> Any:
    """vector * scalar."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], _splat(builder, args[1], vector.width), flags=_FLAGS)

    return vector(vector, types.float32), generate


@intrinsic
def vfma(typing: Any, vector: Any, scalar: Any, accumulator: Any) -> Any:
    """accumulator + vector * scalar."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[0], _splat(builder, args[1], vector.width), flags=_FLAGS)
        return builder.fadd(args[2], product, flags=_FLAGS)

    return vector(vector, types.float32, vector), generate


@intrinsic
def vdot(typing: Any, a: Any, b: Any) -> Any:
    """Sum over the lanes of a * b."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_FLOAT, a.width)
        product = builder.fmul(args[0], args[1], flags=_FLAGS)
        name = f"llvm.vector.reduce.fadd.v{a.width}f32"
        reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_FLOAT, kind]), name)
        return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), product], fastmath=_FLAGS)

    return types.float32(a, b), generate
