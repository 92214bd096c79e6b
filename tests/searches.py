"""What the tests of searches share."""

from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora.study.manifest import StudyFolder
from ablora.tune import frozen
from ablora.tune.storage import Trials

QUICK = ["train=quick", "tracker=off", "cluster=inline", "study=s", "eval.every=1", "eval.at_start=false"]
SPACE = ["train.lr=tag(log,interval(1e-4,1e-1))"]


def trials_of(study: StudyFolder) -> Trials:
    found = frozen.read(study)
    assert found is not None
    return Trials(study, found)


def results(study: StudyFolder) -> dict[str, dict]:
    """What was told, by slot."""
    folders = map(RunFolder, sorted(study.trials.iterdir()))
    return {folder.id: atomic.read_json(folder.result) for folder in folders if folder.result.exists()}


def starts(roots: Roots) -> list[int]:
    """How often each run was begun."""
    return [len(path.read_text().splitlines()) for path in roots.runs.glob("*/executed.txt")]
