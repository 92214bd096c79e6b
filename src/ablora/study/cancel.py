"""`ablora cancel`: end what SLURM has of a study."""

import getpass
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ablora.dispatch import scheduler, submissions
from ablora.dispatch.scheduler import NoAnswer
from ablora.spec import BadInput, check
from ablora.study.manifest import StudyFolder


def cancel(study: StudyFolder) -> Iterator[str]:
    """Cancel the tasks of a study, and of its search, that wait or run; lines that say how many.

    Their runs are *failed (cancelled)* by the next command that looks, and go on when they are asked for; those that
    waited for a preparation are *planned*, as none of them was begun. Arrays that a dead sender left half sent are
    brought to an end first, so that nothing is let go afterwards; one who is sending is waited for.

    Raises `BadInput` for a study that was never sent to SLURM, and where SLURM does not answer.
    """
    sent = [folder for folder in (study.path, study.trials.parent) if submissions.folder_of(folder).is_dir()]
    legal = "a study that was sent to SLURM; one on this machine ends by Ctrl-C in its terminal"
    check(bool(sent), "STUDY", study.name, legal)
    states: Counter[str] = Counter()
    others: Counter[str] = Counter()
    try:
        for folder in sent:
            _cancel(folder, states, others)
    except NoAnswer as error:
        raise BadInput("STUDY", study.name, f"a study whose SLURM answers ({error})") from error
    if states:
        yield f"cancelled {' and '.join(f'{_tasks(count)} that {state}' for state, count in sorted(states.items()))}"
        yield f"when they have ended, ablora retry {study.name} --only cancelled goes on with them"
    for user, count in sorted(others.items()):
        yield f"{_tasks(count)} of {user}, who alone can cancel what is theirs"
    if not (states or others):
        yield f"SLURM has no task of {study.name}"


def _cancel(folder: Path, states: Counter[str], others: Counter[str]) -> None:
    """Counts what is cancelled by whether it ran or waited, and what is left by whose it is."""
    with submissions.lock(folder):
        submissions.mend(folder)
        users = {record.name: record.user for record in submissions.read(folder)}
        tasks = [task for task in scheduler.queued({*users.values()}).values() if task.name in users] if users else []
        me = getpass.getuser()
        mine = [task for task in tasks if users[task.name] == me]
        for name in sorted({task.name for task in mine}):  # of a list of names scancel finds none, and says nothing
            scheduler.ask("scancel", f"--user={me}", f"--name={name}")
    states.update("waited" if task.state == "PENDING" else "ran" for task in mine)
    others.update(users[task.name] for task in tasks if users[task.name] != me)


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"
