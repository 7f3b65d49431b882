"""The rows and starts that both sides of a benchmark share: NumPy alone, so that any interpreter makes the same."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Start = dict[str, dict[str, Rows]]

DATA = Path(__file__).parent.parent / "examples" / "data"


def clusters(rows: int, dims: int, classes: int, covariance: str = "full") -> tuple[Rows, Start]:
    """Overlapping components with covariances of their own, and a start at random rows."""
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(classes, dims))
    factors = np.eye(dims) + 0.3 * random.normal(size=(classes, dims, dims))
    labels = random.integers(classes, size=rows)
    x = np.empty((rows, dims))
    for k in range(classes):
        own = labels == k
        x[own] = centres[k] + random.normal(size=(own.sum(), dims)) @ factors[k].T
    return x, start_at(x, x[random.choice(rows, classes, replace=False)], covariance)


def start_at(x: Rows, centres: Rows, covariance: str = "full") -> Start:
    """Equal shares, these locations, and the spread of all rows for every class."""
    k = len(centres)
    spread = {"cov": np.stack([np.cov(x.T)] * k), "scale": np.stack([x.std(0)] * k)}
    name = "cov" if covariance == "full" else "scale"
    return {"z": {"probs": np.full(k, 1 / k)}, "x": {"loc": centres, name: spread[name]}}


def close_pair(rows: int) -> tuple[Rows, Start]:
    """Two normals in the plane, two of their standard deviations apart."""
    random = np.random.default_rng(1)
    x = random.normal(size=(rows, 2))
    x[: rows // 3, 0] += 2.0
    return x, start_at(x, np.array([[-1.0, 0.5], [2.0, -0.5]]))


def same_centre(rows: int) -> tuple[Rows, Start]:
    """Three normals in four dimensions about one point, their scales 1, 1.7 and 3."""
    random = np.random.default_rng(2)
    scale = np.repeat([1.0, 1.7, 3.0], [rows // 2, rows // 3, rows - rows // 2 - rows // 3])
    x = random.normal(size=(rows, 4)) * scale[:, None]
    start = start_at(x, np.array([[0.1] * 4, [-0.1] * 4, [0.0] * 4]))
    start["x"]["cov"] = start["x"]["cov"] * np.array([0.5, 1.0, 2.0])[:, None, None]
    return x, start


def one_cloud(rows: int) -> tuple[Rows, Start]:
    """Five normals in six dimensions whose locations differ by about one standard deviation a dimension."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(5, 6))
    x = random.normal(size=(rows, 6)) + centres[random.integers(5, size=rows)]
    return x, start_at(x, 1.5 * centres)


BADLY_SEPARATED = {"close pair": close_pair, "same centre": same_centre, "one cloud": one_cloud}


def faithful() -> Rows:
    """Old Faithful: 272 eruptions, their length and the wait before them."""
    return np.loadtxt(DATA / "faithful.csv", delimiter=",", skiprows=1)


def carcinoma() -> NDArray[np.int64]:
    """Seven pathologists' verdicts on 118 slides, 0 or 1."""
    with (DATA / "carcinoma.csv").open() as file:
        rows = [[int(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    return np.array(rows) - 1
