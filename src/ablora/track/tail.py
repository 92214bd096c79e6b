"""Follow a file of JSON lines while another process appends to it."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """The records that were added since the last call; a line without its end is left for the next call."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                found = file.read()
        except FileNotFoundError:
            return []
        whole = found[: found.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
