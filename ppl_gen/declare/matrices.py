"""What a written matrix must satisfy to be a covariance or its Cholesky factor."""

from __future__ import annotations

import math

from ppl_gen.errors import SpecError


def check_covariance(matrix: tuple[tuple[float, ...], ...]) -> None:
    """Symmetric and positive definite; SpecError, beginning with a verb, where it is not."""
    n = len(matrix)
    if any(matrix[i][j] != matrix[j][i] for i in range(n) for j in range(i)):
        raise SpecError("must be a symmetric matrix")
    factor: list[list[float]] = []
    for i in range(n):  # Cholesky's factor exists for the positive definite, and for them only
        row: list[float] = []
        for j in range(i):
            done = math.fsum(row[m] * factor[j][m] for m in range(j))
            row.append((matrix[i][j] - done) / factor[j][j])
        pivot = matrix[i][i] - math.fsum(entry * entry for entry in row)
        if pivot <= 0:
            raise SpecError("must be a positive definite matrix")
        factor.append([*row, math.sqrt(pivot)])


def check_lower(matrix: tuple[tuple[float, ...], ...]) -> None:
    """Lower triangular with a positive diagonal; SpecError, beginning with a verb, where it is not."""
    n = len(matrix)
    if any(matrix[i][j] != 0 for i in range(n) for j in range(i + 1, n)):
        raise SpecError("must be a lower triangular matrix")
    if any(matrix[i][i] <= 0 for i in range(n)):
        raise SpecError("must have a positive diagonal")
