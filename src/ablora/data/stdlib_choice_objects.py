"""What Python's standard library defines, read from its source without importing it: the material of `stdlib_choice`.

Only the text of the .py files counts, so that the outcome depends on the Python release and on nothing of the machine.
"""

from __future__ import annotations

import ast
import builtins
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

# Read for what others import from them or inherit, but not asked about: private modules, jokes, the machine's own.
NOT_ASKED = re.compile(r"(^|\.)(_\w*|antigravity|this|sitecustomize|usercustomize)(\.|$)")
# Tests, programs, generated tables; nothing that is asked about inherits or imports a name from them.
NOT_READ = re.compile(
    r"(^|/)(site-packages|dist-packages|__pycache__|tests?|idle_test|lib-dynload|config-[^/]*|_bundled|idlelib"
    r"|turtledemo|lib2to3|ensurepip|pydoc_data|encodings)(/|$)"
)
SENTENCE_CHARS = (16, 60)
_PLAIN_DECORATORS = {"classmethod", "staticmethod", "abstractmethod"}
_SAYS_NOTHING = re.compile(
    r"(?i)\b(see|todo|xxx|deprecated|internal|helper|same as|like|alias|equivalent|override\w*|overrid\w*|this (class|"
    r"method|function|is)|constructor|initiali[sz]e\w*|subclass\w*|above|below|pep"
    r"|this module|module-specific|e\.g|i\.e)\b|\x22|->|\.\.|:$|\(\)|__|[^\x20-\x7e]|`"
)


class Thing(NamedTuple):
    """A public function, class or method of the library."""

    module: str
    name: str
    """Within the module: "copytree", "ZipFile.read"."""
    sort: str
    """function, class or method."""
    sentence: str
    """First sentence of its docstring, without the full stop; "" where it does not serve as a choice."""
    parameters: tuple[str, ...] | None
    """Of a function or method, without self and cls; None where it takes any keyword, and for a class."""

    @property
    def bare(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def full(self) -> str:
        """With the module: "zipfile.ZipFile.read"."""
        return f"{self.module}.{self.name}"

    @property
    def holder(self) -> str:
        """The module, or of a method its class."""
        return self.full.rpartition(".")[0]

    @property
    def package(self) -> str:
        """The top-level package, by which the splits go."""
        return self.module.partition(".")[0]


class Library(NamedTuple):
    """Everything that may be asked about, and what is needed to prove a wrong choice wrong."""

    things: tuple[Thing, ...]
    """Sorted by full name; none twice."""
    bound: Mapping[str, frozenset[str]]
    """Module to every name that its text binds anywhere; absent where names come from code that cannot be read."""
    attributes: Mapping[str, frozenset[str]]
    """Class to every attribute of it and its bases; absent where a base cannot be read."""


class _Class(NamedTuple):
    names: frozenset[str]
    """Bound in its body at any depth."""
    bases: tuple[str, ...]
    opaque: bool
    """Has attributes that the text does not show: a metaclass, or `__getattr__`."""


def read_library(not_asked: Iterable[str] = (), unseen_text: str = "", stdlib: Path | None = None) -> Library:
    """The library less the modules `not_asked` and every sentence that `unseen_text` holds."""
    trees = dict(_trees(stdlib or Path(sysconfig.get_path("stdlib"))))
    refused, unseen = set(not_asked), _folded(unseen_text)
    asked = [m for m in trees if not NOT_ASKED.search(m) and m not in refused]
    found = [thing for module in asked for thing in _things(module, trees[module])]
    sentences = Counter(_folded(t.sentence) for t in found)
    things = (t if _serves(t, sentences, unseen) else t._replace(sentence="") for t in found)
    bound = {module: names for module in asked if (names := _bound(module, trees, set())) is not None}
    return Library(tuple(sorted(things, key=lambda t: t.full)), bound, _attributes(trees))


def _trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root).as_posix()
        if NOT_READ.search(relative):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            try:
                tree = ast.parse(path.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError):  # files that are wrong on purpose
                continue
        yield relative.removesuffix(".py").removesuffix("/__init__").replace("/", "."), tree


def _things(module: str, tree: ast.Module) -> Iterator[Thing]:
    """Public definitions at the top level and methods of public classes, less those defined twice or deleted again."""
    gone = {name.id for node in tree.body for name in ast.walk(node) if _is_deleted(name)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in gone:
            yield from _single(_thing(module, f"{node.name}.", method) for method in node.body)
    yield from (t for t in _single(_thing(module, "", node) for node in tree.body) if t.name not in gone)


def _is_deleted(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del)


def _single(things: Iterable[Thing | None]) -> Iterator[Thing]:
    there = [t for t in things if t is not None]
    counts = Counter(t.name for t in there)
    yield from (t for t in there if counts[t.name] == 1 and not t.bare.startswith("_"))


def _thing(module: str, inside: str, node: ast.stmt) -> Thing | None:
    if isinstance(node, ast.ClassDef):
        return None if inside else Thing(module, node.name, "class", _sentence(node), None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    if inside and not {_last(d) for d in node.decorator_list} <= _PLAIN_DECORATORS:
        return None  # a property, or something that only its decorator knows
    return Thing(module, inside + node.name, "method" if inside else "function", _sentence(node), _parameters(node))


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...] | None:
    if node.args.kwarg is not None:
        return None
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return tuple(n for n in names if n not in ("self", "cls"))


def _sentence(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    sentence = re.split(r"\.(?=\s|$)", paragraph)[0]
    return sentence[:1].upper() + sentence[1:]


def _serves(thing: Thing, sentences: Mapping[str, int], unseen: str) -> bool:
    """Whether the sentence says what the thing is, of it alone, and without its name."""
    text = _folded(thing.sentence)
    low, high = SENTENCE_CHARS
    return (
        low <= len(thing.sentence) <= high
        and len(text.split()) >= 3
        and sentences[text] == 1
        and thing.bare.casefold() not in re.findall(r"\w+", text)
        and not _SAYS_NOTHING.search(thing.sentence)
        and thing.sentence.count("(") == thing.sentence.count(")")
        and text not in unseen
    )


def _bound(module: str, trees: Mapping[str, ast.Module], seen: set[str]) -> frozenset[str] | None:
    """Every name that the module's text binds at any depth, star imports followed; None if it cannot be known."""
    if module not in trees:
        return None
    names = {m.removeprefix(f"{module}.") for m in trees if m.startswith(f"{module}.")}
    seen.add(module)
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            source = _source(module, node, trees)
            further = frozenset() if source in seen else _bound(source, trees, seen)
            if further is None:
                return None
            names |= further
        elif isinstance(node, ast.Call) and _last(node.func) in ("exec", "globals", "_convert_"):
            return None
        else:
            names |= _names(node)
    return None if "__getattr__" in {getattr(n, "name", "") for n in trees[module].body} else frozenset(names)


def _source(module: str, node: ast.ImportFrom, trees: Mapping[str, ast.Module]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(m.startswith(f"{module}.") for m in trees)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _names(node: ast.AST) -> set[str]:
    """The names that one node binds; `x.name = ...` binds name, for it may be set on a class."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return {name}
        case ast.alias(name=name, asname=asname):
            return {asname or name.partition(".")[0]}
        case ast.Constant(value=str(name)) if name.isidentifier():
            return {name}  # setattr(x, "name", ...), __slots__, __all__
    return set()


def _attributes(trees: Mapping[str, ast.Module]) -> dict[str, frozenset[str]]:
    by_name: dict[str, list[_Class]] = defaultdict(list)
    top: dict[str, _Class] = {}
    for module, tree in trees.items():
        outer = set(map(id, tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                read = _read_class(node)
                by_name[node.name].append(read)
                if id(node) in outer:
                    top[f"{module}.{node.name}"] = read
    members = {name: _members(read, by_name, set()) for name, read in top.items()}
    return {name: names for name, names in members.items() if names is not None}


def _read_class(node: ast.ClassDef) -> _Class:
    names = {name for inner in ast.walk(node) for name in _names(inner)}
    bases = tuple(_last(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases)
    return _Class(frozenset(names), bases, "__getattr__" in names or bool(node.keywords))


def _members(read: _Class, by_name: Mapping[str, list[_Class]], seen: set[str]) -> frozenset[str] | None:
    """Names bound in a class and in every class of the library that is called as one of its bases is."""
    if read.opaque:
        return None
    names = read.names | frozenset(dir(object))
    for base in set(read.bases) - seen:
        seen.add(base)
        known = getattr(builtins, base, None)
        parents = [_members(parent, by_name, seen) for parent in by_name.get(base, ())]
        if isinstance(known, type):
            parents.append(frozenset(dir(known)))
        if not parents or None in parents:
            return None
        names = names.union(*(p for p in parents if p is not None))
    return names


def _last(node: ast.expr) -> str:
    """The last part of a dotted name, also of one that is called; "" for anything else."""
    match node:
        case ast.Call(func=func):
            return _last(func)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
