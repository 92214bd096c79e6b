"""The environment that wandb is given: its login and where it is, and nothing that would rename or regroup our runs."""

import os
import sys
from pathlib import Path

KEPT = (
    *("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE", "WANDB_BASE_URL", "WANDB_APP_URL"),
    *("WANDB_MODE", "WANDB_ENTITY", "WANDB_HTTP_TIMEOUT", "WANDB_CA_BUNDLE", "WANDB_INSECURE_DISABLE_SSL"),
    *("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"),
)
"""WANDB_RUN_ID, WANDB_SWEEP_ID, WANDB_SERVICE and the like belong to an outer run or agent: inherited, they would
take the place of our ids, or tie our client to another's service."""

PLACES = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "NETRC")


def environment(cache: Path, settled: bool = False) -> dict[str, str]:
    """For a process that runs wandb, started in another working directory with the same code as this one.

    `settled`: whether online or offline is decided already (an upload), so that WANDB_MODE has no say.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") or k in KEPT}
    if settled:
        own.pop("WANDB_MODE", None)
    own |= {k: os.path.abspath(os.path.expanduser(own[k])) for k in PLACES if own.get(k)}
    own.setdefault("WANDB_CACHE_DIR", str(cache / "wandb"))
    own.setdefault("WANDB_DATA_DIR", str(cache / "wandb"))
    own["WANDB_ERROR_REPORTING"] = "false"  # else wandb reports its own errors to its makers
    own["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return own
