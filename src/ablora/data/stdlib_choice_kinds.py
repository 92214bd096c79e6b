"""The five kinds of question about the standard library, and why their wrong choices are wrong."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ablora.data.stdlib_choice_objects import Library, Thing

MOST_SHARED = 0.7  # of the words of two descriptions; "Return the x coordinate" and "Return the y coordinate" pass
_SMALL = "a an and as at be by for from if in is it its of on or that the this to with"
SHORT_CHARS = 46  # of a description where four are offered
T = TypeVar("T")


class Draft(NamedTuple):
    """A question before its choices are drawn."""

    text: str
    right: tuple[str, ...]
    """Any of them may be the right choice."""
    wrong: Iterator[str]
    """Proven wrong, the nearest first, in random order where equally near; a text may come twice."""


class Pool(NamedTuple):
    """The part of the library that one split asks about, and from which it takes its wrong choices."""

    library: Library
    things: tuple[Thing, ...]
    near: Mapping[str, tuple[Thing, ...]]
    """Class, module or package, and "" for the pool: the things in it."""
    once: frozenset[str]
    """Names, case folded, of functions and classes that one module alone of the whole library defines."""
    rare: frozenset[str]
    """Last parts of names, case folded, that one class or module alone of the whole library defines."""


def make_pool(library: Library, packages: Iterable[str]) -> Pool:
    """The things of the packages."""
    names = Counter(t.name.casefold() for t in library.things if t.sort != "method")
    bare = Counter(t.bare.casefold() for t in library.things)
    wanted = frozenset(packages)
    things = tuple(t for t in library.things if t.package in wanted)
    near: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        for place in _places(thing):
            near[place].append(thing)
    places = {place: tuple(there) for place, there in near.items()}
    return Pool(library, things, places, _single(names), _single(bare))


# Each thing has a call of its own: a wrong choice is looked for later, and must still be about this thing.


def module_question(rng: random.Random, pool: Pool, thing: Thing) -> Draft | None:
    """Which module defines a name: wrong is a module whose text binds the name nowhere.

    Not asked where the name is the module's own, as of tokenize.tokenize.
    """
    if not _names_its_module(pool, thing):
        return None
    bound, dotted = pool.library.bound, "." in thing.module
    # Drawn as often as they are right, and from dotted names for dotted ones: neither fame nor length tells them apart.
    near = (t.module for t in _nearest(rng, pool, thing) if _names_its_module(pool, t))
    wrong = (m for m in near if thing.name not in bound[m] and ("." in m) == dotted)
    return Draft(f"Which module defines the {thing.sort} {thing.name}?", (thing.module,), wrong)


def purpose_question(rng: random.Random, pool: Pool, thing: Thing) -> Draft | None:
    """What a thing does: wrong is the description of another thing of another name, in clearly other words."""
    if not 0 < len(thing.sentence) <= SHORT_CHARS:
        return None
    asks, ends = ("What is", "?") if thing.sort == "class" else ("What does", " do?")
    near = (t for t in _nearest(rng, pool, thing) if t.sort == thing.sort and len(t.sentence) <= SHORT_CHARS)
    text = f"{asks} the {thing.sort} {thing.full}{ends}"
    return Draft(text, (thing.sentence,), (t.sentence for t in near if tell_apart(thing, t)))


def name_question(rng: random.Random, pool: Pool, thing: Thing) -> Draft | None:
    """What the thing of a description is called: wrong is another one of the same class or module."""
    if not thing.sentence:
        return None
    same = [t for t in pool.near[thing.holder] if (t.holder, t.sort) == (thing.holder, thing.sort)]
    text = f'Which {thing.sort} of {thing.holder} is described by "{thing.sentence}"?'
    wrong = (t.bare for t in shuffled(rng, same) if tell_apart(thing, t))
    return Draft(text, (thing.bare,), wrong)


def member_question(rng: random.Random, pool: Pool, thing: Thing) -> Draft | None:
    """Which name a class or module defines: wrong is one that neither it nor what it builds on binds.

    The question is about the holder of the thing; it is asked once, with the first of its things by name.
    Names that several define, such as close, do not serve: they would be right more often than they can be wrong.
    """
    holder, sort = thing.holder, thing.sort
    members = [t for t in pool.near[holder] if (t.holder, t.sort) == (holder, sort) and t.bare.casefold() in pool.rare]
    known = (pool.library.attributes if sort == "method" else pool.library.bound).get(holder)
    if known is None or not members or thing != members[0]:
        return None
    near = (
        t
        for t in _nearest(rng, pool, thing)
        if t.sort == sort and t.bare.casefold() in pool.rare and t.bare not in known
    )
    text = f"Which {sort} does the {'class' if sort == 'method' else 'module'} {holder} define?"
    return Draft(text, tuple(t.bare for t in members), (t.bare for t in near))


def parameter_question(rng: random.Random, pool: Pool, thing: Thing) -> Draft | None:
    """Which parameter a function takes: wrong is one of another function; none is asked that takes any keyword."""
    taken = thing.parameters or ()
    right = tuple(name for name in taken if _speaks(name))
    if not right:
        return None
    near = (shuffled(rng, t.parameters or ()) for t in _nearest(rng, pool, thing) if t.sort == thing.sort)
    wrong = (names[0] for names in near if names and _speaks(names[0]) and names[0] not in taken)
    return Draft(f"Which parameter does the {thing.sort} {thing.full} take?", right, wrong)


KINDS: dict[str, Callable[[random.Random, Pool, Thing], Draft | None]] = {
    "module": module_question,
    "purpose": purpose_question,
    "name": name_question,
    "member": member_question,
    "parameter": parameter_question,
}


def tell_apart(thing: Thing, other: Thing) -> bool:
    """Whether the other has a description that cannot be taken for the thing's.

    Other names (overrides share theirs), neither description's words within the other's, at most MOST_SHARED in common.
    """
    a, b = _words(thing.sentence), _words(other.sentence)
    return bool(b) and other.bare != thing.bare and not (a <= b or b <= a) and len(a & b) <= MOST_SHARED * len(a | b)


def _words(sentence: str) -> frozenset[str]:
    return frozenset(word.rstrip("s") for word in re.findall(r"\w+", sentence.casefold())) - set(_SMALL.split())


def _names_its_module(pool: Pool, thing: Thing) -> bool:
    known = thing.sort != "method" and thing.name.casefold() in pool.once and thing.module in pool.library.bound
    return known and thing.name not in thing.module.split(".")


def _single(counts: Counter[str]) -> frozenset[str]:
    return frozenset(name for name, n in counts.items() if n == 1)


def _speaks(parameter: str) -> bool:
    return len(parameter) > 2 and not parameter.startswith("_")


def _places(thing: Thing) -> tuple[str, ...]:
    """From the nearest to the farthest; "" is the whole pool."""
    return tuple(dict.fromkeys((thing.holder, thing.module, thing.package, "")))


def _nearest(rng: random.Random, pool: Pool, thing: Thing) -> Iterator[Thing]:
    """Same class, same module, same package, then all; a place is shuffled only when it is reached."""
    for place in _places(thing):
        yield from shuffled(rng, pool.near[place])


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """In random order, by one draw an item."""
    return sorted(items, key=lambda _: rng.random())
