"""The part of W&B's service that a run needs: upsert, resume status, file stream; it remembers what it was told.

History lines have places: a chunk with offset n replaces what was at n and after, as W&B's own service has it.
"""

import gzip
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Stored:
    """One run, as the service has it."""

    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    received: list[int] = field(default_factory=list)
    """`_step` of every row that came in, repeats included."""
    summary: dict[str, Any] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        return [self.history[place] for place in sorted(self.history)]

    def stream(self, body: dict[str, Any]) -> None:
        files = body.get("files", {})
        if (chunk := files.get("wandb-history.jsonl")) is not None:
            for place, line in enumerate(chunk["content"], chunk["offset"]):
                self.history[place] = json.loads(line)
                self.received.append(self.history[place]["_step"])
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(line)
        if body.get("complete"):
            self.exit_codes.append(body["exitcode"])


class FakeWandb(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Stored] = defaultdict(Stored)
        self.refused: set[str] = set()
        """Runs whose rows are answered with an error that is not worth a retry."""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server's."""

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = (found := re.search(r"(?:query|mutation)\s+(\w+)", query)) and found.group(1)
        if name == "RunResumeStatus":
            known = variables["name"] in self.runs
            bucket = self._bucket(variables["name"]) if known else None
            return {"model": {"id": "p", "name": "ablora", "entity": {"id": "e", "name": "lab"}, "bucket": bucket}}
        if name == "UpsertBucket":
            self.runs[variables["name"]].upserts.append(variables)
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"{self.url}/put/{one}"} for one in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any]:
        stored = self.runs[run]
        rows = stored.rows()
        project = {"name": "ablora", "entity": {"name": "lab"}}
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        return {
            "id": run, "name": run, "displayName": run, "description": None, "config": "{}", "tags": [], "notes": None,
            "sweepName": None, "project": project, "summaryMetrics": json.dumps(stored.summary), "historyTail": tail,
            "eventsTail": "[]", "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "wandbConfig": '{"t":{"1":[]}}',
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWandb

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        with self.server.lock:
            if self.path.endswith("/graphql"):
                self._answer({"data": self.server.graphql(told["query"], told.get("variables") or {})})
            elif (run := self.path.split("/")[-2]) in self.server.refused:
                self._answer({"error": "no"}, 400)
            else:
                self.server.runs[run].stream(told)
                self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _answer(self, value: dict[str, Any], code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...
