"""Provide float vectors for Numba kernels: LLVM vectors of a chosen width, without a compiler.

A kernel takes ``lanes(W)``, a tuple of W zeros. The *type* of the tuple holds the width, so Numba specialises (and
caches on disk) one kernel for each width. Vectors are float32 and support ``+ - *`` (the right operand of ``*`` may be
a scalar). They are loaded from and stored to flat arrays of float32, or of int16 with bfloat16 bit patterns.
"""

from __future__ import annotations

import operator
from typing import Any, Callable, Tuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

_FLOAT, _INT16, _INT32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
# Re-association and contraction are allowed; NaN and infinity are still handled.
FAST_MATH = ("contract", "reassoc", "nsz", "arcp")
DOT_LANES = 8  # lanes of partial sums, before lanes are exchanged


class VectorType(types.Type):
    """Describe a register of ``width`` float32 lanes."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Vector({width})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, _floats(kind.width))


def lanes(width: int) -> Tuple[np.float32, ...]:
    """Return the tuple that sets a kernel's vector width."""
    return (np.float32(0),) * width


def _floats(width: int) -> Any:
    return ir.VectorType(_FLOAT, width)


def _ints(width: int) -> Any:
    return ir.VectorType(_INT32, width)


def _all(width: int, value: int) -> Any:
    """Return an int32 vector constant."""
    return ir.Constant(_ints(width), [value] * width)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, kind: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _splat(builder: Any, scalar: Any, width: int) -> Any:
    undefined = ir.Constant(_floats(width), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, undefined, _all(width, 0))


def _call(builder: Any, name: str, result: Any, args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, fastmath=FAST_MATH)


# ---- making vectors


@intrinsic
def vsplat(typing: Any, scalar: Any, like: Any) -> Any:
    """Return the scalar in every lane, as wide as the tuple ``like``."""
    kind = VectorType(like.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], kind.width)

    return kind(types.float32, like), generate


@intrinsic
def vload(typing: Any, array: Any, offset: Any, like: Any) -> Any:
    """Return array[offset : offset + width]."""
    kind = VectorType(like.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if array.dtype == types.int16:  # bfloat16 is the upper half of a float32
            address = _address(context, builder, array, args[0], args[1], ir.VectorType(_INT16, kind.width))
            wide = builder.zext(builder.load(address, align=2), _ints(kind.width))
            return builder.bitcast(builder.shl(wide, _all(kind.width, 16)), _floats(kind.width))
        return builder.load(_address(context, builder, array, args[0], args[1], _floats(kind.width)), align=4)

    return kind(array, types.intp, like), generate


def _strided(first: int, stride: int) -> Any:
    """Return a function that loads array[offset + first :: stride], width lanes."""

    @intrinsic
    def load(typing: Any, array: Any, offset: Any, like: Any) -> Any:
        kind = VectorType(like.count)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = _address(context, builder, array, args[0], args[1], _floats(stride * kind.width))
            everything = builder.load(address, align=4)
            pick = ir.Constant(_ints(kind.width), [stride * i + first for i in range(kind.width)])
            return builder.shuffle_vector(everything, everything, pick)

        return kind(array, types.intp, like), generate

    return load


vload_even, vload_odd = (_strided(i, 2) for i in range(2))  # the halves of (W,2) pairs
vload_first, vload_second, vload_third, vload_fourth = (_strided(i, 4) for i in range(4))  # the quarters of (W,4)


@intrinsic
def fetch(typing: Any, array: Any, offset: Any) -> Any:
    """Return array[offset] of a flat array, without the check for negative offsets in ``array[offset]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = cgutils.create_struct_proxy(array)(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), generate


# ---- arithmetic


def _elementwise(method: str) -> Callable[..., Any]:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            right = args[1] if isinstance(b, VectorType) else _splat(builder, args[1], a.width)
            return getattr(builder, method)(args[0], right, flags=FAST_MATH)

        return a(a, b if isinstance(b, VectorType) else types.float32), generate

    return operation


_add, _subtract, _multiply = _elementwise("fadd"), _elementwise("fsub"), _elementwise("fmul")


@overload(operator.add)
def _vector_add(a, b):  # type: ignore[no-untyped-def]  # Numba compares the signatures
    if isinstance(a, VectorType) and isinstance(b, VectorType):
        return lambda a, b: _add(a, b)
    return None


@overload(operator.sub)
def _vector_subtract(a, b):  # type: ignore[no-untyped-def]  # Numba compares the signatures
    if isinstance(a, VectorType) and isinstance(b, VectorType):
        return lambda a, b: _subtract(a, b)
    return None


@overload(operator.mul)
def _vector_multiply(a, b):  # type: ignore[no-untyped-def]  # Numba compares the signatures
    if isinstance(a, VectorType) and (isinstance(b, VectorType) or b == types.float32):
        return lambda a, b: _multiply(a, b)
    return None


@intrinsic
def vfloor(typing: Any, a: Any) -> Any:
    """Return the largest integers not above a."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.floor.v{a.width}f32", _floats(a.width), args)

    return a(a), generate


@intrinsic
def vwhere_less(typing: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Return ``yes`` where a < b, else ``no`` (also where either is NaN)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return yes(a, b, yes, no), generate


def _sum(builder: Any, vector: Any, width: int) -> Any:
    return _call(builder, f"llvm.vector.reduce.fadd.v{width}f32", _FLOAT, [ir.Constant(_FLOAT, 0.0), vector])


# ---- storing


@intrinsic
def vstore(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Store array[offset : offset + width] = vector; bfloat16 is rounded to nearest, ties to even."""
    width = vector.width

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, kind = args[2], _floats(width)
        if array.dtype == types.int16:
            bits, kind = builder.bitcast(value, _ints(width)), ir.VectorType(_INT16, width)
            odd = builder.and_(builder.lshr(bits, _all(width, 16)), _all(width, 1))
            rounded = builder.add(builder.add(bits, _all(width, 0x7FFF)), odd)
            nan = builder.fcmp_unordered("uno", value, value)
            upper = builder.lshr(builder.select(nan, _all(width, 0x7FC00000), rounded), _all(width, 16))
            value = builder.trunc(upper, kind)
        address = _address(context, builder, array, args[0], args[1], kind)
        builder.store(value, address, align=2 if array.dtype == types.int16 else 4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def put(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Store array[offset] = value, without the check for negative offsets; see ``fetch``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = cgutils.create_struct_proxy(array)(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


@intrinsic
def vstore_pairs(typing: Any, array: Any, offset: Any, even: Any, odd: Any) -> Any:
    """Store array[offset : offset + 2 * width] = even[0], odd[0], even[1], odd[1], ..."""
    width = even.width

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        order = ir.Constant(_ints(2 * width), [i // 2 + (i % 2) * width for i in range(2 * width)])
        pairs = builder.shuffle_vector(args[2], args[3], order)
        builder.store(pairs, _address(context, builder, array, args[0], args[1], _floats(2 * width)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, even, odd), generate


@intrinsic
def vstore_index(typing: Any, array: Any, offset: Any, vector: Any, unit: Any) -> Any:
    """Store array[offset : offset + width] = int32(vector) * unit, for vectors of integers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(args[2], _ints(vector.width))
        one = builder.insert_element(_all(vector.width, 0), args[3], ir.Constant(_INT32, 0))
        scaled = builder.mul(whole, builder.shuffle_vector(one, one, _all(vector.width, 0)))
        builder.store(scaled, _address(context, builder, array, args[0], args[1], _ints(vector.width)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.int32), generate


@intrinsic
def vstore_dots(typing: Any, array: Any, offset: Any, g: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Store array[offset : offset + 4] = the sums over the lanes of g*a, g*b, g*c and g*d."""
    width = g.width

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, array, args[0], args[1], _floats(4))
        folded = DOT_LANES if width % DOT_LANES == 0 else width
        products = [_folded_product(builder, args[2], v, width, folded) for v in args[3:]]
        if folded % 4:
            sums = ir.Constant(_floats(4), ir.Undefined)
            for i, product in enumerate(products):
                sums = builder.insert_element(sums, _sum(builder, product, folded), ir.Constant(_INT32, i))
        else:
            sums = _transposed_sums(builder, products, folded)
        builder.store(sums, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, g, a, b, c, d), generate


def _folded_product(builder: Any, a: Any, b: Any, width: int, folded: int) -> Any:
    """Return a * b with its parts of ``folded`` lanes added up, so that fewer lanes must be exchanged."""
    total = None
    for first in range(0, width, folded):
        lane = ir.Constant(_ints(folded), list(range(first, first + folded)))
        x, y = (builder.shuffle_vector(v, v, lane) for v in (a, b))
        product = builder.fmul(x, y, flags=FAST_MATH)
        total = product if total is None else builder.fadd(total, product, flags=FAST_MATH)
    return total


def _transposed_sums(builder: Any, products: Any, width: int) -> Any:
    """Reduce four vectors to <4 x float> of their sums by exchanges in groups of four: 13 instructions, not 40."""

    def add_shuffled(x: Any, y: Any, low: Any, high: Any) -> Any:
        """Add two shuffles of x and y; the patterns repeat in every group of four."""
        halves = []
        for pattern in (low, high):
            lane = [4 * (i // 4) + pattern[i % 4] for i in range(width)]
            lane = [n if pattern[i % 4] < 4 else n + width - 4 for i, n in enumerate(lane)]  # from 4 on: y's
            halves.append(builder.shuffle_vector(x, y, ir.Constant(_ints(width), lane)))
        return builder.fadd(*halves, flags=FAST_MATH)

    a, b, c, d = products
    ab = add_shuffled(a, b, (0, 4, 1, 5), (2, 6, 3, 7))  # each group: a, b, a, b
    cd = add_shuffled(c, d, (0, 4, 1, 5), (2, 6, 3, 7))
    total = add_shuffled(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))  # each group: a, b, c, d
    groups = [
        builder.shuffle_vector(total, total, ir.Constant(_ints(4), list(range(i, i + 4)))) for i in range(0, width, 4)
    ]
    while len(groups) > 1:
        groups = [
            builder.fadd(groups[i], groups[i + 1], flags=FAST_MATH) if i + 1 < len(groups) else groups[i]
            for i in range(0, len(groups), 2)
        ]
    return groups[0]
