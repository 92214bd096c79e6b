"""What the fair protocol has decided of each arm.

fair.json   {"schema", "protocol", "arms": {ARM: {"values", "extensions", "best", "edge"}}}: `values` are those beyond
            the common grid; `best` is null while tuning is not over; `edge`: the best value lies on the border of a
            range that was extended as often as it may be, so the arm's own best is not known, and it is not ranked
"""

from dataclasses import dataclass

from ablora.store import atomic
from ablora.study.manifest import StudyFolder

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the tuning of one arm is."""

    values: tuple[float, ...] = ()
    """Beyond the common grid."""
    extensions: int = 0
    best: float | None = None
    edge: bool = False


def verdicts(study: StudyFolder) -> dict[str, Verdict]:
    """What is decided, by arm; empty before the first look."""
    if not study.fair.exists():
        return {}
    found = atomic.read_json(study.fair)
    try:
        return {name: Verdict(**{**one, "values": tuple(one["values"])}) for name, one in found["arms"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise atomic.Corrupted(str(study.fair), str(error), "a protocol's verdicts") from error
