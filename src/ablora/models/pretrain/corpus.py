"""The text that every CPython carries, as documents: help topics, docstrings, source; split by name.

A module is one source document (its docstrings cut out) and one docstring document, so that no sentence is counted
twice. Whole names are held out: the split asks a hash of the name alone, hence it is the same on any CPython 3.11+.
"""

import ast
import hashlib
import inspect
import json
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PICO_DIR = Path(__file__).resolve().parent.parent / "pico"
HELD_OUT_FILE = PICO_DIR / "held_out.jsonl"
KINDS = ("topic", "docstrings", "source")

# Tests, generated tables, the topics' own source, machine facts, and files that are wrong on purpose.
SKIPPED = re.compile(
    r"(^|/)(site-packages|dist-packages|pydoc_data|encodings|__pycache__|tests?|idle_test|lib-dynload"
    r"|_sysconfigdata\w*|config-[^/]*|__phello__[^/]*|_bundled|sitecustomize|usercustomize)(/|\.py$|$)"
    r"|^html/entities\.py$"
)
HELD_OUT_TOPIC_PERCENT = 22
HELD_OUT_MODULE_PERCENT = 10
HELD_OUT_SOURCE_CHARS_MAX = 8_000  # of each held-out source: prose keeps a clear share of the frozen file
BLOCK_CHARS_MIN = 60  # shorter blocks repeat by nature ("return self", "See also")


class Document(NamedTuple):
    """One text with the name that decides its split; kind is topic, docstrings or source."""

    name: str
    kind: str
    text: str


def split_key(name: str, kind: str) -> str:
    """The name that is hashed: `heapq`, `_heapq` and `_pyheapq` are one module."""
    if kind == "topic":
        return f"topic:{name}"
    return "module:" + re.sub(r"^(_py(?=[a-z])|_)", "", name)


def is_held_out(name: str, kind: str) -> bool:
    """True for the names whose sha256, modulo 100, falls under the kind's percentage."""
    draw = int.from_bytes(hashlib.sha256(split_key(name, kind).encode()).digest()[:8], "big") % 100
    return draw < (HELD_OUT_TOPIC_PERCENT if kind == "topic" else HELD_OUT_MODULE_PERCENT)


def topic_documents() -> Iterator[Document]:
    """The language reference as `help()` shows it."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(name, "topic", topics[name].strip() + "\n")


def split_docstrings(name: str, source: str) -> tuple[str, str]:
    """A module's source without its docstrings, and the docstrings under their qualified names."""
    lines, docs, cut = source.splitlines(), [], set()

    def visit(node: ast.AST, qualified: str) -> None:
        body = getattr(node, "body", [])
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            head = qualified
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                head += f"({ast.unparse(node.args)})"
            docs.append(f"{head}\n\n{inspect.cleandoc(first.value.value)}\n")
            # a docstring that shares its line with code stays where it is
            if lines[first.lineno - 1].lstrip()[:1] in tuple("\"'rRuU"):
                cut.update(range(first.lineno - 1, first.end_lineno or first.lineno))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{qualified}.{child.name}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        tree = ast.parse(source)
    visit(tree, name)
    code = "\n".join(line.rstrip() for i, line in enumerate(lines) if i not in cut)
    return re.sub(r"\n{3,}", "\n\n\n", code).strip() + "\n", "\n".join(docs)


def module_documents(stdlib: Path | None = None) -> Iterator[Document]:
    """Source and docstrings of every library module, tests left out, in the order of the paths."""
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root).as_posix()
        if SKIPPED.search(relative):
            continue
        name = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        try:
            code, docs = split_docstrings(name, path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        yield Document(name, "source", code)
        if docs:
            yield Document(name, "docstrings", docs)


def block_key(block: str) -> bytes:
    """What two blocks share when they differ in white space alone."""
    return hashlib.sha256(" ".join(block.split()).encode()).digest()


def without_repeats(documents: Iterable[Document], seen: set[bytes]) -> Iterator[Document]:
    """The documents less every blank-line separated block already in `seen`, which grows; short blocks stay."""
    for document in documents:
        kept = []
        for block in document.text.split("\n\n"):
            if len(block.strip()) >= BLOCK_CHARS_MIN:
                key = block_key(block)
                if key in seen:
                    continue
                seen.add(key)
            kept.append(block)
        text = "\n\n".join(kept).strip() + "\n"
        if len(text) >= 2 * BLOCK_CHARS_MIN:
            yield document._replace(text=text)


def running_documents() -> list[Document]:
    """Every document of the running interpreter, both splits, topics first."""
    return [*topic_documents(), *module_documents()]


def make_held_out(documents: Iterable[Document]) -> list[Document]:
    """The held-out documents in the form that is frozen: no repeats, long sources cut at a line."""
    held = []
    for document in without_repeats((d for d in documents if is_held_out(d.name, d.kind)), set()):
        text = document.text
        if document.kind == "source" and len(text) > HELD_OUT_SOURCE_CHARS_MAX:
            text = text[: text.rindex("\n", 0, HELD_OUT_SOURCE_CHARS_MAX) + 1]
        held.append(document._replace(text=text))
    return held


def read_held_out(path: Path = HELD_OUT_FILE) -> list[Document]:
    """The frozen held-out documents, from the package and never from the running interpreter."""
    with path.open(encoding="utf-8") as lines:
        return [Document(**json.loads(line)) for line in lines]


def write_held_out(documents: Iterable[Document], path: Path = HELD_OUT_FILE) -> None:
    """One JSON object a line, in the order given."""
    rows = [json.dumps(d._asdict(), ensure_ascii=False) for d in documents]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def training_documents(held_out: Iterable[Document] | None = None) -> list[Document]:
    """The running interpreter's training documents: no held-out name, no block of the held-out text, no repeats."""
    running = running_documents()
    frozen = list(held_out) if held_out is not None else read_held_out()
    seen: set[bytes] = set()
    # Both: the frozen file guards the evaluation, this interpreter's held-out names guard another Python's text.
    for _ in without_repeats([*frozen, *(d for d in running if is_held_out(d.name, d.kind))], seen):
        pass
    return list(without_repeats((d for d in running if not is_held_out(d.name, d.kind)), seen))


def fingerprint(documents: Iterable[Document]) -> str:
    """sha256 over the sorted lines `kind:name sha256(text)`."""
    rows = sorted(f"{d.kind}:{d.name} {hashlib.sha256(d.text.encode()).hexdigest()}\n" for d in documents)
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def sizes_bytes(documents: Iterable[Document]) -> dict[str, int]:
    """UTF-8 bytes of each kind."""
    total: dict[str, int] = {kind: 0 for kind in KINDS}
    for document in documents:
        total[document.kind] += len(document.text.encode())
    return total
