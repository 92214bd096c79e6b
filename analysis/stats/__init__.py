"""Intervals and tests over seeds, paired on the same seeds and the same evaluation items.

The primary interval and test are conditional on the evaluation items: they answer what other seeds would give on these
items. `new_items` answers what other seeds would give on other items. One seed can only say what other items would give
to this one seed, and the result then says so (`basis`). docs/statistics.md has the measured coverage of each.
"""

from ablora_analysis.stats.bootstrap import Bootstrapped, bootstrap
from ablora_analysis.stats.crossed import Components, NewItems, components, new_items
from ablora_analysis.stats.design import DesignPower, design_power, minimum_detectable_difference, smallest_p
from ablora_analysis.stats.intervals import Basis, Summary, over_items, summary
from ablora_analysis.stats.paired import Paired, paired, per_seed
from ablora_analysis.stats.permutation import sign_flip_p
from ablora_analysis.stats.ties import Ties, holm, tied_with_best

__all__ = [
    "Basis", "Bootstrapped", "Components", "DesignPower", "NewItems", "Paired", "Summary", "Ties", "bootstrap",
    "components", "design_power", "holm", "minimum_detectable_difference", "new_items", "over_items", "paired",
    "per_seed", "sign_flip_p", "smallest_p", "summary", "tied_with_best",
]  # fmt: skip
