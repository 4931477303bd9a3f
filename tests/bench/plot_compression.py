"""The picture of the encodings' costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def compression(result: dict[str, Any], path: Path) -> None:
    """Error against bytes on the wire, and the rates, for the largest vector."""
    count = max(row["parameters"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["parameters"] == count and row["encoding"] != "float32"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for row in rows:
        left.plot(row["times_less"], row["square_lost"], "o", color="tab:blue")
        left.annotate(
            row["encoding"],
            (row["times_less"], row["square_lost"]),
            xytext=(4, 4),
            textcoords="offset points",
        )
    left.set(
        xscale="log", yscale="log", xlabel="times fewer bytes on the wire", ylabel="part of the square lost"
    )
    places = range(len(rows))
    for shift, what in ((-0.2, "encode"), (0.2, "decode")):
        right.bar([p + shift for p in places], [row[f"{what}_per_s"] / 1e6 for row in rows], 0.4, label=what)
    right.set(yscale="log", ylabel="million parameters per second")
    right.set_xticks(list(places), [row["encoding"] for row in rows], rotation=45)
    right.legend()
    figure.suptitle(f"{count:,} parameters, one core; topk of {result['fraction']:.0%}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
