"""The second half of `make demo`: read the two saved fits, write their ArviZ files and a picture of each.

Usage: python examples/demo.py out

Before it, `ppl-gen fit` has saved a mixture of Old Faithful's eruptions in out/faithful and a variational
autoencoder of handwritten digits in out/digits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from ppl_gen import load
from ppl_gen.diagnose import plot_classes, plot_reconstructions

FAITHFUL = Path(__file__).parent / "data" / "faithful.csv"
SHOWN = 10  # digits in the picture


def main(folder: str) -> None:
    """Write NAME.nc and NAME.png beside each fit."""
    out = Path(folder)
    eruptions, digits = load(out / "faithful"), load(out / "digits")
    images = pd.read_csv(out / "digits.csv")
    eruptions.to_arviz(FAITHFUL).to_netcdf(out / "faithful.nc")
    # Ten draws of a latent for each of 1797 images are enough to look at, and keep the file small.
    digits.to_arviz(images, draws=10).to_netcdf(out / "digits.nc")
    plot_classes(eruptions, FAITHFUL).savefig(out / "faithful.png", dpi=120)
    plot_reconstructions(digits, images.head(SHOWN), shape=(8, 8)).savefig(out / "digits.png", dpi=120)
    for name in ("faithful", "digits"):
        print(f"wrote {out / name}.nc and {out / name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
