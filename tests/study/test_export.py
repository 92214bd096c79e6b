"""`ablora export`: PEFT computes what the run computed, and nothing half-written is left."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ablora import cli
from ablora.method.adapt import adapt
from ablora.models.base import load
from ablora.models.rows import lay_out
from ablora.spec import BadInput
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.study.export import export
from tiny import disturb, made_up
from train.small import save_base, small_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def finished(roots: Roots, base, preset: str) -> tuple[RunFolder, torch.Tensor]:
    """A run as training leaves it, and its logits on two sequences."""
    spec = small_spec(base, preset)
    folder, own = create(roots, spec), load(spec.model)
    adapted = adapt(own.model, [spec], [None], None)
    disturb(adapted)  # type: ignore[arg-type]
    adapted.save(0, folder.adapter)
    rows = lay_out([made_up(0, 1)])
    with torch.no_grad():
        found = adapted.logits(adapted.hidden(rows))
    adapted.detach()
    result = {"schema": 1, "id": folder.id, "step": 8, "metrics": {"answer_loss_nats": 1.0}}
    atomic.write_json(folder.result, {**result, "trainable_parameters": 1, "modules": {}})
    return folder, found


@pytest.mark.parametrize("preset", ["lora", "rslora", "pissa", "dora", "adalora"])
def test_peft_computes_what_the_run_computed(base, tmp_path, monkeypatch, capsys, preset):
    monkeypatch.chdir(tmp_path)
    folder, wanted = finished(Roots.from_environment(), base, preset)
    assert cli.main(["export", folder.id, "--to", "peft", "--output", "out/there"]) == 0
    assert capsys.readouterr().out.strip() == "out/there"
    place = tmp_path / "out" / "there"
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), str(place))
    with torch.no_grad():
        found = model(input_ids=torch.tensor([made_up(0, 1)[0].input_ids])).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    assert folder.id in (place / "README.md").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["there"]


def test_what_peft_cannot_hold_and_places_that_are_taken_are_refused(base, tmp_path):
    roots = Roots(tmp_path / "runs", tmp_path / "studies", None)
    mixture, _ = finished(roots, base, "goat")
    with pytest.raises(BadInput, match=r"depends on the token.*ablora_adapter\.safetensors"):
        export(roots, mixture.id, "peft", tmp_path / "a")
    pair, _ = finished(roots, base, "lora")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(BadInput, match="--output="):
        export(roots, pair.id, "peft", tmp_path / "b")
    with pytest.raises(BadInput, match="--to='mlx'"):
        export(roots, pair.id, "mlx", tmp_path / "c")
    with pytest.raises(BadInput, match="RUN='nobody'"):
        export(roots, "nobody", "peft", None)
    pair.result.unlink()
    with pytest.raises(BadInput, match="a run that is done"):
        export(roots, pair.id, "peft", tmp_path / "c")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "c").exists()
