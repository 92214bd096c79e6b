"""The updates of mixtures whose experts share something, from their run folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_made import write_run
from safetensors.torch import load_file

from ablora.store import lines
from ablora_analysis.measure.adapters import EXPECTED
from ablora_analysis.measure.from_run import open_run
from presets import method
from train.small import save_base, small_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [("hydralora", ()), ("hydralora", ("init=svd_principal",)), ("goat_shared_expert", ()), ("goat_s", ())],
)
def test_expected_and_single_updates_are_sums_over_experts(base, roots, preset, overrides):
    """sum_e s_e (g_e B_e A_e - c_e B0_e A0_e), c the expected gates; of one expert s_e (B_e A_e - B0_e A0_e)."""
    chosen = method(preset, *overrides)
    folder, _ = write_run(roots, replace(small_spec(base), method=chosen))
    num, shared = chosen.structure.experts, chosen.structure.shared_expert
    gates = np.arange(1, num + 1) / (num * (num + 1) / 2)
    modules = list(open_run(folder).ranks)
    folder.items("routing").parent.mkdir()
    lines.write(folder.items("routing"), [{"item": name, "step": 1, "mean_gate": gates.tolist()} for name in modules])
    means = [1.0, *[1 / (num - 1)] * (num - 1)] if shared else [1 / num] * num
    adapter, file = open_run(folder), load_file(folder.path / "adapter/ablora_adapter.safetensors")
    for module in (modules[0], modules[-1]):
        f = {role.removeprefix(f"{module}."): t.double().numpy() for role, t in file.items() if role.startswith(module)}
        parts, size = adapter.parts(module), 8 // num
        expected = 0.0
        for e in range(num):
            rows = slice(e * size, (e + 1) * size)
            inward = slice(None) if chosen.structure.shared_a else rows
            now = (f["scale"][rows, None] * f["B"][rows]).T @ f["A"][inward]
            was = (f["scale"][rows, None] * f["B0"][inward]).T @ f["A0"][inward] if "A0" in f else 0.0 * now
            learnt = parts[f"expert {e}"].update
            np.testing.assert_allclose((learnt.B @ learnt.A).numpy(), now - was, atol=1e-9)
            expected = expected + gates[e] * now - means[e] * was
        update = parts[EXPECTED].update
        np.testing.assert_allclose((update.B @ update.A).numpy(), expected, atol=1e-9)
