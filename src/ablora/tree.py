"""Plain trees (what YAML and JSON hold) to frozen dataclasses and back; unknown fields are refused by name."""

import importlib
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin

from ablora.spec import BadInput, check


def to_tree(value: Any) -> Any:
    """A plain tree that `build` turns into an equal value: every dataclass names its class as `_target_`."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: to_tree(getattr(value, f.name)) for f in fields(value)}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if isinstance(value, Mapping):
        return {key: to_tree(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_tree(part) for part in value]
    return value


def trusted(target: str) -> bool:
    """Whether a `_target_` may be imported: ablora's own, or of a module that ABLORA_TRUSTED_MODULES lists."""
    names = ["ablora", *filter(None, os.environ.get("ABLORA_TRUSTED_MODULES", "").split(","))]
    return any(target.startswith(f"{name.strip()}.") for name in names)


def locate(target: str) -> type:
    """The dataclass that a `_target_` names."""
    check(isinstance(target, str) and trusted(target), "_target_", target,
          "a dataclass of ablora.*, or of a module listed in ABLORA_TRUSTED_MODULES")  # fmt: skip
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the named one needs: not the user's mistake
        raise BadInput("_target_", target, f"a dataclass in a module that exists ({error})") from error
    check(isinstance(found, type) and is_dataclass(found), "_target_", target, "the name of a dataclass")
    return cast(type, found)


def build(tree: Any, hint: Any = Any, part: Callable[[Any, Any], Any] | None = None) -> Any:
    """A typed value from a plain tree; unknown, missing and mistyped fields are refused by name.

    `part` builds the fields of the outermost dataclass in place of `build`: one that remembers shares them.
    """
    if isinstance(tree, Mapping) and "_target_" in tree:
        own = {key: value for key, value in tree.items() if key != "_target_"}
        return _construct(locate(tree["_target_"]), own, part or build)
    if is_dataclass(hint) and isinstance(hint, type):
        check(isinstance(tree, Mapping), "", tree, f"a mapping with the fields {', '.join(_names(hint))}")
        return _construct(hint, tree, part or build)
    return _cast(tree, hint)


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def _construct(cls: type, tree: Mapping[str, Any], part: Callable[[Any, Any], Any]) -> Any:
    hints, legal = _hints(cls), _names(cls)
    for key in tree:
        check(key in legal, str(key), tree[key], f"an unknown field; {cls.__name__} has {', '.join(legal)}")
    arguments = {}
    for f in fields(cls):
        if f.name not in tree:
            if f.default is MISSING and f.default_factory is MISSING:
                raise BadInput(f.name, None, f"{cls.__name__} needs a value for this field")
            continue
        try:
            arguments[f.name] = part(tree[f.name], hints[f.name])
        except BadInput as error:
            raise error.under(f.name) if error.field_name else BadInput(f.name, error.value, error.legal) from None
    return cls(**arguments)


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _cast(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`: 4 becomes 4.0 where a float is meant; nothing else changes its type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        group = "a mapping with _target_; to choose a group's value write a slash, as in method/init=svd_minor"
        check(not isinstance(value, str | int | float | bool), "", value, group)
        return value
    if origin in (Union, types.UnionType):
        return _cast_union(value, args)
    if origin is Literal:
        check(value in args, "", value, f"one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        check(isinstance(value, list | tuple), "", value, "a list")
        parts = args[:1] * len(value) if args[-1] is Ellipsis else args
        check(len(parts) == len(value), "", value, f"a list of {len(parts)} values")
        return tuple(build(part, inner) for part, inner in zip(value, parts))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return dict(_cast_items(value, args[1]))
    return _cast_scalar(value, hint)


def _cast_items(value: Any, hint: Any) -> Iterator[tuple[str, Any]]:
    check(isinstance(value, Mapping), "", value, "a mapping")
    for key, part in value.items():
        if part is None:
            continue  # `eval.tasks.generation=null` leaves a task out
        try:
            yield key, build(part, hint)
        except BadInput as error:
            raise error.under(key) if error.field_name else BadInput(key, error.value, error.legal) from None


def _cast_union(value: Any, args: tuple[Any, ...]) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [arg for arg in args if arg is not type(None)]
    for kind in kinds[:-1]:
        try:
            return build(value, kind)
        except BadInput:
            continue
    return build(value, kinds[-1])


def _cast_scalar(value: Any, hint: Any) -> Any:
    if hint is float:
        check(isinstance(value, int | float) and not isinstance(value, bool), "", value, "a number")
        check(math.isfinite(value), "", value, "a finite number")
        return float(value)
    if hint is int:
        check(isinstance(value, int) and not isinstance(value, bool), "", value, "an integer")
        return value
    check(isinstance(hint, type) and isinstance(value, hint), "", value, f"a {getattr(hint, '__name__', hint)}")
    return value
