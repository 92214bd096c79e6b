"""How often the scaling figure's intervals hold what was planted: `python tests/analysis/calibration_scaling.py`.

For docs/tuning.md: some minutes of one core. Each search has 20 trials, half at random, half near the best s.
"""

import math

import numpy as np
import pandas as pd
from synthetic_scaling import Trial, search

from ablora_analysis.figures.scaling_curves import Curve, Panel, curve

SEARCHES, TRIALS = 50, 20
METRIC = "loss_nats"


def fitted(trials: list[Trial]) -> Curve:
    rows = pd.DataFrame([{"id": str(i), "s": t.s, "train.lr": t.lr, METRIC: t.loss} for i, t in enumerate(trials)])
    best = trials[0].best_s
    panel = Panel("", "", "lora", rows.assign(spread=1.0, fate="used"), ("train.lr",))
    return curve(panel, {"low": best / 4, "high": best * 3}, METRIC)


def truth(s: float, trials: list[Trial]) -> float:
    rates = np.geomspace(min(t.lr for t in trials), max(t.lr for t in trials), 60)
    return min(Trial(s=s, lr=rate, best_s=trials[0].best_s).loss for rate in rates)


def main() -> None:
    for noise in (0.01, 0.05):
        rng = np.random.default_rng(11)
        best, band, price, octaves = [], [], [], []
        for seed in range(SEARCHES):
            trials = search(float(2 ** rng.uniform(0, 4)), seed=1000 + seed, number=TRIALS, noise=noise)
            one = fitted(trials)
            planted = np.array([truth(s, trials) for s in one.grid])
            best.append(one.best.low <= trials[0].best_s <= one.best.high)
            band.append(np.mean((np.array(one.low) <= planted) & (planted <= np.array(one.high))))
            octaves.append(math.log2(one.best.high / one.best.low))
            price += [
                theory.loss.low <= truth(theory.s, trials) - 1 <= theory.loss.high
                for theory in one.theories
                if not math.isnan(theory.loss.middle)
            ]
        print(f"noise {noise}: best s {np.mean(best):.2f}, band {np.mean(band):.3f}, price {np.mean(price):.2f} of "
              f"{len(price)}; the best s within {np.median(octaves):.1f} octaves", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
