"""Draw the loss curves of a training: docs/builtin-training.png.

python recipes/builtin_tiny/plot.py --out out/tiny --picture docs/builtin-training.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder with train.csv")
    parser.add_argument("--picture", type=Path, required=True, help="the picture to write")
    arguments = parser.parse_args()
    table = np.genfromtxt(arguments.out / "train.csv", delimiter=",", names=True)
    figure, axes = plt.subplots(figsize=(7, 3.2), dpi=110)
    for name, label in (("only_noise", "from noise alone"), ("some_signal", "from noisy residuals")):
        smooth = np.convolve(np.nan_to_num(table[name], nan=np.nanmean(table[name])), np.ones(5) / 5, mode="same")
        axes.plot(table["samples"][2:-2], smooth[2:-2], label=label)
    axes.set_xlabel("clips seen")
    axes.set_ylabel("weighted squared error")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(arguments.picture)


if __name__ == "__main__":
    main()
