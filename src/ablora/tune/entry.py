"""Commands on a study by its name: a grid's go to `study`, a search's to `tune`."""

from ablora.store.roots import Roots
from ablora.study import main as grid
from ablora.study.manifest import existing_study


def resume(name: str) -> int:
    """Go on with a study; the exit code."""
    if not study_searches(name):
        return grid.resume(name)
    from ablora.tune import main as search

    return search.resume(name, Roots.from_environment())


def retry(name: str, only: str | None) -> int:
    """Go on with a study and try its failures again, all or those of one class."""
    if not study_searches(name):
        return grid.retry(name, only)
    from ablora.tune import main as search

    return search.resume(name, Roots.from_environment(), again=True, only=only)


def study_searches(name: str) -> bool:
    """Whether a study is a search; what its trials became is brought into its manifest then."""
    roots = Roots.from_environment()
    study = existing_study(roots, name)
    if not study.search.exists():
        return False
    from ablora.tune.absorb import look

    look(roots, study)
    return True
