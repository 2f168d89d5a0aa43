"""Compiled passes over float32 memory on the CPU: each reads its tensors once, where a dozen operations would.

Tensors are given by the addresses of contiguous float32 memory, which the caller keeps alive; 0 stands for none. Pieces
of them, int64 [pieces, 4], have tensor, start, stop and the place in copies that lie end to end. Squares are added in
float32 by blocks, and in float64 where that could not do, so that sums are exact to 1e-6. Knows nothing of parameters
or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]  # it is exported, and documented
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

BLOCK = 1024
"""Elements whose squares are added in float32."""
SMALL, LARGE = np.float32(1e-28), np.float32(1e36)
"""Between these a float32 sum of squares has lost nothing that counts."""
MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits of a float32 but its sign: as integers they have the order of the magnitudes, with NaN above infinity."""


def _compiled(function: F) -> F:
    """Sums may be taken in any order; NaN and infinity are what they are."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return cast("F", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # there is nowhere to keep what is compiled
        return cast("F", numba.njit(**options)(function))


def _pointer(element: Any) -> Any:
    def typed(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return numba.types.CPointer(element)(address), generate  # type: ignore[no-untyped-call]

    return intrinsic(typed)


_floats, _integers = _pointer(numba.types.float32), _pointer(numba.types.int32)


@_compiled
def gradient(pieces: Any, grads: Any, nonzero: Any, zeros: Any, out: Any) -> None:
    """Write where gradients are not 0 to `nonzero`, uint8, and how many are 0 of each block to `zeros`, from [piece, 0]
    on; of a block without a 0 `nonzero` is not written. Without a gradient all are 0.

    `out` [4, pieces]: sum of squares, how many are not finite, how many are not 0, the bits of the largest magnitude.
    """
    for piece in range(len(pieces)):
        tensor, start, stop, place = pieces[piece]
        size = stop - start
        out[:, piece] = 0.0
        if grads[tensor] == 0:
            nonzero[place : place + size] = 0
            zeros[piece] = BLOCK
            continue
        values = carray(_floats(grads[tensor]), stop)[start:stop]
        bits = carray(_integers(grads[tensor]), stop)[start:stop]
        largest = np.int32(0)
        for begin in range(0, size, BLOCK):
            end = min(size, begin + BLOCK)
            count, magnitude = _count(bits[begin:end])
            largest = max(largest, magnitude)
            zeros[piece, begin // BLOCK] = end - begin - count
            if count:
                _add_squares(values[begin:end], out[:2, piece])
                out[2, piece] += count
            if count < end - begin:
                _write_nonzero(bits[begin:end], nonzero[place + begin : place + end])
        out[3, piece] = largest


@_compiled
def change(pieces: Any, weights: Any, before: Any, began: Any, nonzero: Any, zeros: Any, out: Any) -> None:
    """What has become of the weights since `before` and since they `began`.

    `out` [5, pieces]: their sum of squares, how many are not finite, the sums of squares of both differences, and how
    many are the same, bit for bit, where gradients are not 0, as `gradient` wrote it.
    """
    for piece in range(len(pieces)):
        tensor, start, stop, place = pieces[piece]
        size = stop - start
        values = carray(_floats(weights[tensor]), stop)[start:stop]
        bits = carray(_integers(weights[tensor]), stop)[start:stop]
        old, oldest = before[place : place + size], began[place : place + size]
        old_bits, counted = old.view(np.int32), nonzero[place : place + size]
        out[:, piece] = 0.0
        for begin in range(0, size, BLOCK):
            end = min(size, begin + BLOCK)
            now, then, once = values[begin:end], old[begin:end], oldest[begin:end]
            squares, update, distance = _three_sums(now, then, once)
            if SMALL < squares < LARGE:
                out[0, piece] += squares
            else:
                _add_exactly(now, out[:2, piece])
            out[2, piece] += update if SMALL < update < LARGE else _exact_difference(now, then)
            out[3, piece] += distance if SMALL < distance < LARGE else _exact_difference(now, once)
            if zeros[piece, begin // BLOCK]:
                out[4, piece] += _same_where(bits[begin:end], old_bits[begin:end], counted[begin:end])
            else:
                out[4, piece] += _same(bits[begin:end], old_bits[begin:end])


@_compiled
def moments(pieces: Any, firsts: Any, seconds: Any, out: Any) -> None:
    """`out` [4, pieces]: sum of squares of the first moment, how many of it are not finite, and the largest and the
    smallest of the second as `ordered` integers.
    """
    for piece in range(len(pieces)):
        tensor, start, stop, _ = pieces[piece]
        out[:, piece] = 0.0
        if firsts[tensor] != 0:
            values = carray(_floats(firsts[tensor]), stop)[start:stop]
            for begin in range(0, stop - start, BLOCK):
                _add_squares(values[begin : begin + BLOCK], out[:2, piece])
        if seconds[tensor] != 0:
            out[2, piece], out[3, piece] = _extremes(carray(_integers(seconds[tensor]), stop)[start:stop])


@_compiled
def gather(tensors: Any, strides: Any, ends: Any, out: Any) -> None:
    """Every so many elements of each tensor, laid end to end in `out`, float32; `ends` [tensors + 1] says where."""
    for tensor in range(tensors.size):
        begin, stride = ends[tensor], strides[tensor]
        count = ends[tensor + 1] - begin
        values = carray(_floats(tensors[tensor]), (count - 1) * stride + 1)
        for index in range(count):
            out[begin + index] = values[index * stride]


@_compiled
def compare(ends: Any, theta: Any, after: Any, delta: Any, grad: Any, v_hat: Any, small: Any, out: Any) -> None:
    """`out` [6, tensors], of vectors [elements] that are gathered as `ends` says: the sums of squares of `delta` and of
    what arrived, the sum of their products, of squares of `grad`, of `v_hat`, and how often its root is below `small`.
    """
    for tensor in range(ends.size - 1):
        intended, applied, both, squares, second, dominated = 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for index in range(ends[tensor], ends[tensor + 1]):
            asked, arrived = np.float64(delta[index]), np.float64(after[index] - theta[index])
            intended += asked * asked
            applied += arrived * arrived
            both += asked * arrived
            squares += np.float64(grad[index]) * np.float64(grad[index])
        for index in range(ends[tensor], min(ends[tensor + 1], v_hat.size)):
            second += np.float64(v_hat[index])
            dominated += np.sqrt(v_hat[index]) < small
        out[0, tensor], out[1, tensor], out[2, tensor] = intended, applied, both
        out[3, tensor], out[4, tensor], out[5, tensor] = squares, second, dominated


def make_ready() -> None:
    """Compile all of them, or take them from where they are kept, so that no step waits for it."""
    floats, whole, bytes_ = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.uint8)
    pieces, zeros, out = np.empty((0, 4), np.int64), np.empty((0, 1), np.int32), np.empty((6, 0))
    gradient(pieces, whole, bytes_, zeros, out)
    change(pieces, whole, floats, floats, bytes_, zeros, out)
    moments(pieces, whole, whole, out)
    gather(whole, whole, np.zeros(1, np.int64), floats)
    compare(np.zeros(1, np.int64), floats, floats, floats, floats, floats, np.float32(0), out)


def ordered(bits: np.ndarray) -> np.ndarray:
    """int32 bits of float32 as integers of the same order, and back; NaN lie at both ends."""
    found: np.ndarray = bits ^ ((bits >> 31) & MAGNITUDE)
    return found


@_compiled
def _add_squares(values: Any, sums: Any) -> None:
    total = np.float32(0)
    for index in range(values.size):
        total += values[index] * values[index]
    if SMALL < total < LARGE:
        sums[0] += total
    else:
        _add_exactly(values, sums)


@_compiled
def _add_exactly(values: Any, sums: Any) -> None:
    total, count = 0.0, 0
    for index in range(values.size):
        value = np.float64(values[index])
        total += value * value
        count += not np.isfinite(value)
    sums[0] += total
    sums[1] += count


@_compiled
def _three_sums(now: Any, then: Any, once: Any) -> tuple[Any, Any, Any]:
    squares, update, distance = np.float32(0), np.float32(0), np.float32(0)
    for index in range(now.size):
        value = now[index]
        squares += value * value
        difference = value - then[index]
        update += difference * difference
        difference = value - once[index]
        distance += difference * difference
    return squares, update, distance


@_compiled
def _exact_difference(now: Any, then: Any) -> float:
    total = 0.0
    for index in range(now.size):
        difference = np.float64(now[index] - then[index])
        total += difference * difference
    return total


@_compiled
def _same(bits: Any, others: Any) -> Any:
    count = np.int32(0)
    for index in range(bits.size):
        count += np.int32(bits[index] == others[index])
    return count


@_compiled
def _same_where(bits: Any, others: Any, where: Any) -> Any:
    count = np.int32(0)
    for index in range(bits.size):
        count += np.int32(bits[index] == others[index]) & np.int32(where[index])
    return count


@_compiled
def _count(bits: Any) -> tuple[Any, Any]:
    count, largest = np.int32(0), np.int32(0)
    for index in range(bits.size):
        magnitude = bits[index] & MAGNITUDE
        largest = max(largest, magnitude)
        count += np.int32(magnitude != 0)
    return count, largest


@_compiled
def _write_nonzero(bits: Any, nonzero: Any) -> None:
    for index in range(bits.size):
        nonzero[index] = np.uint8((bits[index] & MAGNITUDE) != 0)


@_compiled
def _extremes(bits: Any) -> tuple[Any, Any]:
    largest, smallest = np.int32(-(2**31)), np.int32(2**31 - 1)
    for index in range(bits.size):
        value = bits[index] ^ ((bits[index] >> 31) & MAGNITUDE)
        largest = max(largest, value)
        smallest = min(smallest, value)
    return largest, smallest
