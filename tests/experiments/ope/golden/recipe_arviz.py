"""How pareto_shape.json was made: the Pareto shape of weights by ArviZ.

Run by hand in a separate environment:

    python -m venv peer && peer/bin/pip install "arviz==0.20.0" "scipy<1.15" "matplotlib<3.9"
    peer/bin/python tests/experiments/ope/golden/recipe_arviz.py

ArviZ smooths log weights and returns the shape beside them; the weights themselves are written with it,
rounded to six digits before it sees them.
"""

from __future__ import annotations

import json
from pathlib import Path

import arviz  # type: ignore[import-not-found]
import numpy as np


def main() -> None:
    rng = np.random.default_rng(20)
    samples = {
        "lognormal": np.exp(rng.standard_normal(200)),
        "wide lognormal": np.exp(2.5 * rng.standard_normal(300)),
        "uniform": rng.random(150),
        "half Cauchy": np.abs(rng.standard_cauchy(250)),
        "exponential": rng.exponential(size=400),
        "product of ratios": np.prod(rng.choice([0.25, 1.1, 1.9], p=[0.2, 0.6, 0.2], size=(300, 8)), axis=1),
        "short": np.exp(rng.standard_normal(40)),
    }
    cases = []
    for name, sample in samples.items():
        weight = np.array([float(f"{w:.6g}") for w in sample])
        _, shape = arviz.psislw(np.log(weight))
        cases.append({"name": name, "shape": float(shape), "weight": weight.tolist()})
    record = {"made_by": f"arviz {arviz.__version__}, psislw", "cases": cases}
    path = Path(__file__).with_name("pareto_shape.json")
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
