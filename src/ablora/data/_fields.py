"""Checks of configuration fields that several data sets have."""

from __future__ import annotations

from typing import Any

from ablora.data._base import DataError


def check_count(dataset: str, field: str, value: int | None, *, optional: bool = False) -> None:
    """DataError unless the value is a positive whole number (or None, where that means all)."""
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        legal = "a whole number above 0" + (", or null for all" if optional else "")
        raise DataError(f"dataset {dataset}: field {field!r} is {value!r}; it must be {legal}")


def as_tuple(dataset: str, field: str, value: Any) -> tuple[Any, ...]:
    """A YAML list as a tuple; DataError for a single value, whose letters would otherwise be taken one by one."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise DataError(
            f"dataset {dataset}: field {field!r} is {value!r}; it must be a list: dataset.{field}=[{value}]"
        )
    return tuple(value)
