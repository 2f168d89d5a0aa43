"""The linear algebra of a pair of factors: norm, singular values and distance of B·A, in float64.

B is [out, rank], A is [rank, in]. Everything goes through Gram matrices or QR, so that nothing larger than a factor is
formed. Knows nothing of files, layouts or alphas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Singular:
    """B·A = u · diag(values) · v, `values` falling; u [out, k], v [k, in], k = min(out, rank, in)."""

    u: Matrix
    values: Matrix
    v: Matrix


def as_up_matrix(up: NDArray[np.floating]) -> Matrix:
    """B as a matrix [out, rank]; a convolution's is [out, rank, 1, 1]."""
    return up.reshape(up.shape[0], -1).astype(np.float64)


def as_down_matrix(down: NDArray[np.floating]) -> Matrix:
    """A as a matrix [rank, in]; a convolution's is [rank, in, height, width], and its `in` counts all of the kernel."""
    return down.reshape(down.shape[0], -1).astype(np.float64)


def norm(b: Matrix, a: Matrix) -> float:
    """‖B·A‖_F = √⟨BᵀB, AAᵀ⟩. NaN or infinite where the factors are."""
    with np.errstate(invalid="ignore", over="ignore"):
        return math.sqrt(max(float(np.sum((b.T @ b) * (a @ a.T))), 0.0)) if _finite(b, a) else math.nan


def singular(b: Matrix, a: Matrix) -> Singular:
    """The singular value decomposition of B·A: of R_B · R_Aᵀ after a QR of both factors, so it is exact."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, values, v = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Singular(q_b @ u, values, v @ q_a.T)


def singular_values(b: Matrix, a: Matrix) -> Matrix:
    """The singular values of B·A alone, falling."""
    return cast("Matrix", np.linalg.svd(_triangle(b) @ _triangle(a.T).T, compute_uv=False))


def live(values: Matrix, size: int) -> int:
    """How many singular values are more than rounding; `size` is the larger side of the matrix."""
    if not values.size or values[0] == 0:
        return 0
    return int(np.count_nonzero(values > values[0] * size * np.finfo(np.float64).eps))


def rank_for(values: Matrix, energy: float, size: int) -> int:
    """The smallest rank that keeps the share `energy` of Σσ²: 0 for a zero matrix, all but rounding for 1.0."""
    count = live(values, size)
    left_out = np.cumsum(values[:count][::-1] ** 2)[::-1]  # element k: the energy that rank k loses
    enough = left_out <= (1.0 - energy) * left_out[0] if count else left_out
    return int(np.argmax(enough)) if np.any(enough) else count


def distance(b: Matrix, a: Matrix, other_b: Matrix, other_a: Matrix) -> float:
    """‖B·A − B'·A'‖_F, without the cancellation that a difference of Gram matrices has."""
    r_b, r_a = _triangle(np.hstack([b, -other_b])), _triangle(np.vstack([a, other_a]).T)
    return float(np.linalg.norm(r_b @ r_a.T))


def _triangle(matrix: Matrix) -> Matrix:
    """R of the matrix's QR."""
    return cast("Matrix", np.linalg.qr(matrix, mode="r"))


def _finite(*matrices: Matrix) -> bool:
    return all(bool(np.isfinite(matrix).all()) for matrix in matrices)
