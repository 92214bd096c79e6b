"""Where things are: ABLORA_RUNS (default ./runs), the studies beside it, ABLORA_CACHE."""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from ablora.spec import BadInput

PROBE = bytes(65536)
"""A full disk takes the name of a file, and often some bytes."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The three folders that a command works in."""

    runs: Path
    studies: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> "Roots":
        runs = Path(os.environ.get("ABLORA_RUNS", "runs")).absolute()
        default_cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ablora"
        return cls(runs, runs.parent / "studies", Path(os.environ.get("ABLORA_CACHE", default_cache)).absolute())

    def environment(self) -> dict[str, str]:
        """What a process must find in its environment to work in the same folders."""
        return {"ABLORA_RUNS": str(self.runs), "ABLORA_CACHE": str(self.cache)}

    def require_writable(self) -> None:
        """Refuse, before anything is queued, a place that cannot be written to."""
        for variable, root in (("ABLORA_RUNS", self.runs), ("ABLORA_RUNS", self.studies), ("ABLORA_CACHE", self.cache)):
            try:
                root.mkdir(parents=True, exist_ok=True)
                probe = root / f".probe-{uuid.uuid4().hex}"
                try:
                    probe.write_bytes(PROBE)
                finally:
                    probe.unlink(missing_ok=True)
            except OSError as error:
                legal = f"a folder that can be written to ({error.strerror}); export {variable}=FOLDER names another"
                raise BadInput(variable, str(root), legal) from error
