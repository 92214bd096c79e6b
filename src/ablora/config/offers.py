"""What may stand next on a command line of overrides: for completion in a shell. Hydra's own completion knows the
groups and keys; here it learns values after a comma, and keeps to what is ours."""

from collections.abc import Sequence

from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from ablora.config.loader import CONFIG, is_group, open_loader


def offers(words: Sequence[str], word: str) -> list[str]:
    """Whole words that begin with `word`, after the override `words`: keys end in `=` or `.`, values in nothing."""
    key, is_value, text = word.partition("=")
    if is_value and key.endswith("path"):
        return []  # the shell completes file names by itself
    *chosen, last = text.split(",")
    before = "".join(f"{value}," for value in chosen)
    with open_loader() as loader:
        plugin = DefaultCompletionPlugin(loader)
        whole = [other for other in words if "=" in other and "," not in other]  # others are no single configuration
        found = plugin._query(CONFIG, " ".join([*whole, f"{key}={last}" if is_value else word]))
        if is_value:
            values = [value for value in (offer.removeprefix(f"{key}=") for offer in found) if value not in chosen]
            return [f"{key}={before}{value}" for value in values if value.startswith(last) and "=" not in value]
        groups = {offer for offer in found if is_group(loader, offer.lstrip("+"))}
    out = [part for offer in found for part in ([f"{offer}=", f"{offer}/"] if offer in groups else [offer])]
    ours = [offer for offer in out if "_target_" not in offer and not offer.startswith("hydra")]
    return ours if not word.startswith("hydra") else out
