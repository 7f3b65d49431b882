"""Rows that do not fit: a mixture fitted to a Parquet file, and the resident memory it took.

    python benchmarks/streaming.py [--rows 20000000 --dims 8 --classes 5 --steps 10 --folder DIR]

The file (8 bytes a cell) is written a chunk at a time under `--folder` and removed at the end. The fit runs in a
process of its own; what is reported is that process' peak beyond what it held with torch loaded, and with the
library imported on top.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHUNK = 500_000
MIB = 2**20
KIB = 1024  # ru_maxrss counts in these on Linux


def write_rows(path: Path, rows: int, dims: int, classes: int) -> None:
    """Clusters two standard deviations apart, written chunk by chunk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    centres = 2 * random.normal(size=(classes, dims))
    names = [f"x{j}" for j in range(dims)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            x = centres[random.integers(classes, size=size)] + random.normal(size=(size, dims))
            writer.write_table(pa.table([np.ascontiguousarray(column) for column in x.T], schema=schema))


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MIB


def fit_file(path: Path, classes: int, steps: int, threads: int) -> None:
    """Fit the file in this process; print seconds, log-likelihood, and three peaks in MiB."""
    import torch

    torch.set_num_threads(threads)
    with_torch = peak()
    from sides import plain_em

    from ppl_gen import Rows, fit, gaussian_mixture

    imported = peak()
    algorithm = plain_em(max_steps=steps, tol=0, restarts=1)
    begun = time.perf_counter()
    found = fit(gaussian_mixture(classes), Rows(str(path)), algorithm)
    print(time.perf_counter() - begun, found.log_likelihood, with_torch, imported, peak())


def main() -> None:
    """Write the file, fit it in a process of its own, report, remove it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"rows": 20_000_000, "dims": 8, "classes": 5, "steps": 10, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where the file goes; default the system's own")
    parser.add_argument("--fit", type=Path, help="fit this file, in this process")
    options = parser.parse_args()
    if options.fit is not None:
        fit_file(options.fit, options.classes, options.steps, options.threads)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, cells = Path(folder) / "rows.parquet", options.rows * options.dims
        if shutil.disk_usage(folder).free < 10 * cells:
            raise SystemExit(
                f"{folder} has too little room for {10 * cells / MIB:.0f} MiB; choose a --folder"
            )
        write_rows(path, options.rows, options.dims, options.classes)
        print(f"{options.rows} rows × {options.dims}: a file of {path.stat().st_size / MIB:.0f} MiB")
        same = [f"--{name}={getattr(options, name)}" for name in ("classes", "steps", "threads")]
        run = subprocess.run(
            [sys.executable, __file__, *same, "--fit", str(path)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    taken, value, with_torch, imported, most = map(float, run.stdout.strip().splitlines()[-1].split())
    print(f"{options.steps} steps in {taken:.1f} s, log-likelihood {value:.6f}")
    print(
        f"resident: {with_torch:.0f} MiB with torch, {imported:.0f} MiB with the library, {most:.0f} MiB at most"
    )
    print(f"beyond the interpreter with torch: {most - with_torch:.0f} MiB")


if __name__ == "__main__":
    main()
