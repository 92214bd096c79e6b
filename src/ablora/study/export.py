"""`ablora export`: a run's adapter as a folder for others."""

import shutil
import uuid
from pathlib import Path

from ablora.spec import BadInput, check
from ablora.store.atomic import read_json, write_json, write_text
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of

PEFTS = ("adapter_config.json", "adapter_model.safetensors")
EXACT = ("ablora_adapter.json", "ablora_adapter.safetensors")


def export(roots: Roots, run: str, to: str, output: Path | None) -> Path:
    """Package a finished run's adapter in PEFT's layout, its exact factors beside it; returns the folder.

    The folder appears whole: it is filled aside and renamed. Refuses a run that is not done, an update that PEFT's
    LoRA cannot hold (one that depends on the token), and a place that is taken.
    """
    check(to == "peft", "--to", to, "peft")
    folder = _finished(roots, run)
    adapter = folder.adapter
    if not read_json(adapter / EXACT[0])["peft"]:
        legal = (f"a run whose update is one matrix in each module: what this one adds depends on the token, and PEFT "
                 f"has no layout for it. Its exact tensors are in {adapter / EXACT[1]}")  # fmt: skip
        raise BadInput("RUN", run, legal)
    place = Path(f"{run}-peft") if output is None else output.expanduser()
    taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    check(not taken, "--output", str(place), "a place where nothing is yet")
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}.aside"
    aside.mkdir()
    try:
        for name in (*PEFTS, *EXACT):
            shutil.copyfile(adapter / name, aside / name)
        _name_base(folder, aside / PEFTS[0])
        write_text(aside / "README.md", _card(folder))
        if place.exists():
            place.rmdir()
        aside.rename(place)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return place


def _finished(roots: Roots, run: str) -> RunFolder:
    folder = folder_of(roots, Path(run).name)
    check(folder.spec.exists(), "RUN", run, f"the id or folder of a run in {roots.runs}")
    check(folder.result.exists(), "RUN", run, "a run that is done; `ablora status` tells where each stands")
    return folder


def _name_base(folder: RunFolder, config: Path) -> None:
    """PEFT finds a base by a path or a name; of an embedded one there is none."""
    model = folder.read_tree()["model"]
    if model.get("path"):
        write_json(config, {**read_json(config), "base_model_name_or_path": model["path"]})


def _card(folder: RunFolder) -> str:
    tree, result = folder.read_tree(), folder.read_result()
    method = tree["method"].get("name", tree["method"]["_target_"])
    metrics = "\n".join(f"- {name}: {value:.6g}" for name, value in result["metrics"].items())
    return f"""# Adapter of run {folder.id}

{method}, rank {tree["rank"]}, seed {tree["seed"]}, {result["step"]} steps on {tree["dataset"]["name"]}.
Base: {tree["model"]["name"]}.
{result["trainable_parameters"]:,} numbers were trained.

    from peft import PeftModel
    model = PeftModel.from_pretrained(base, "this folder")

A start away from zero is subtracted in the factors (their rank is then twice the run's): the base is the original one,
unchanged. `ablora_adapter.safetensors` has the factors as they were trained.

{metrics}
"""
