"""Write scikit-learn's handwritten digits as a CSV file: 1797 rows of 8 × 8 grey levels from 0 to 16.

Usage: python examples/digits.py out/digits.csv

The images are those of Alpaydin and Kaynak (1998), https://archive.ics.uci.edu/dataset/80. Their own scale is
kept on purpose. models/vae.yaml has noise of variance 1 on every pixel: on levels divided by 16 that is more
than the digits themselves vary in any direction, and the best such model has no use for its latents.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_digits


def main(path: str) -> None:
    """Write pixel_0_0 to pixel_7_7."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    pd.DataFrame(load_digits().data, columns=names).to_csv(target, index=False)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
