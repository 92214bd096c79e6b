"""conf/dataset: every preset lists every field of its data set, at a legal value."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

PRESETS = sorted((Path(__file__).parents[2] / "conf/dataset").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_preset(preset):
    fields = OmegaConf.to_container(OmegaConf.load(preset))
    module, _, name = fields.pop("_target_").rpartition(".")
    value = getattr(importlib.import_module(module), name)(**fields)
    assert list(fields) == [f.name for f in dataclasses.fields(value)]
    assert value.name == preset.stem
    assert isinstance(value.revision, int)
    hash(value)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_preset_says_what_it_is(preset):
    header = [line for line in preset.read_text().splitlines() if line.startswith("#")]
    assert any("Source:" in line for line in header)
    assert any("Licence:" in line for line in header)
