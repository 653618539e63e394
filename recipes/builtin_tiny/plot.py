"""The loss curves of a training as pictures.

    python recipes/builtin_tiny/plot.py --out out/tiny --pictures docs [--clips 45000]

Reads the logs of run.py. Knows nothing of models.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from pipelines.core import plots


def curves(log: Path, every: int, until: float, *names: str) -> list[list[tuple[float, float]]]:
    """For each column its means over `every` samples, as (samples, mean), up to `until` samples."""
    with log.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["samples"]) <= until]
    bins: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        bins.setdefault(int(row["samples"]) // every, []).append(row)

    def average(at: int, name: str) -> float:
        # A line says "nan" where no step was of its kind.
        return float(np.nanmean([float(row[name]) for row in bins[at]]))

    return [[((at + 0.5) * every, average(at, name)) for at in sorted(bins)] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--pictures", type=Path, required=True, help="folder to write to")
    parser.add_argument("--clips", type=int, default=sys.maxsize, help="the U-Net's clips up to here; default: all")
    arguments = parser.parse_args()
    noisy, blind = curves(arguments.out / "unet.csv", 1000, arguments.clips, "some_signal", "only_noise")
    series = {"from noisy residuals": noisy, "from noise alone": blind}
    picture = plots.lines(series, "clips", "squared error, over that of no motion")
    (arguments.pictures / "builtin-unet.png").write_bytes(picture)
    (stills,) = curves(arguments.out / "autoencoder.csv", 1000, sys.maxsize, "mse")
    (both,) = curves(arguments.out / "decoder.csv", 1000, sys.maxsize, "mse")
    series = {"on stills": stills, "then on as many predictions of the U-Net": both}
    picture = plots.lines(series, "crops", "mean squared error of pixels (in a range of 2)")
    (arguments.pictures / "builtin-decoder.png").write_bytes(picture)


if __name__ == "__main__":
    main()
