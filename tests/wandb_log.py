"""Read a `.wandb` transaction log back: 32 KiB blocks of leveldb's log format, after a header of 7 bytes.

wandb 0.31 has no reader in Python; the framing is public (leveldb's log_format.md), the records are its protobufs.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32 * 1024, 7


def records(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for message in _messages(path.read_bytes()):
        record = Record()
        record.ParseFromString(message)
        found.append(record)
    return found


def _messages(data: bytes) -> list[bytes]:
    assert data[:4] == b":W&B"
    position, whole, part = HEADER, [], b""
    while position + HEADER <= len(data):
        if (room := BLOCK - position % BLOCK) < HEADER:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if kind == 0:
            break
        part += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a full record, or the last piece of one
            whole.append(part)
            part = b""
    return whole


@dataclass
class Log:
    """What one log says of one run."""

    runs: list[Any] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    preempting: int = 0


def read(path: Path) -> Log:
    log = Log()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.runs.append(record.run)
            log.config |= _items(record.run.config.update)
        elif kind == "config":
            log.config |= _items(record.config.update)
        elif kind == "history":
            log.rows.append(_items(record.history.item))
        elif kind == "summary":
            log.summary |= _items(record.summary.update)
        elif kind == "metric":
            log.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            log.exit_codes.append(record.exit.exit_code)
        elif kind == "preempting":
            log.preempting += 1
    return log


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
