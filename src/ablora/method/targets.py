"""Which modules are adapted."""

from torch import nn
from transformers import PreTrainedModel

from ablora.spec import BadInput


def find_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear layers that `targets` names, in the model's order.

    `all-linear` is every nn.Linear but the output head (which is tied to the embeddings in many models, and which no
    paper of the field adapts). Otherwise each entry is the end of a module's dotted name: q_proj, or layers.0.q_proj.
    An entry that matches nothing is refused.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == "all-linear":
        return linear
    wanted = (targets,) if isinstance(targets, str) else targets
    for entry in wanted:
        if not any(_ends(name, entry) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise BadInput("adapter.targets", entry, f"all-linear, or the end of a module's name: {', '.join(known)}")
    return {name: m for name, m in linear.items() if any(_ends(name, entry) for entry in wanted)}


def _ends(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}")
