"""`ablora analyse`: a study into its own folder, or any adapters to the terminal and to a folder of one's choice."""

from collections.abc import Sequence
from pathlib import Path

from ablora.spec import BadInput, check
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora_analysis import table
from ablora_analysis.measure import main
from ablora_analysis.measure.summary import summary


def analyse(names: Sequence[str], base: str | None = None, out: str | None = None) -> int:
    """Print a summary and where the tables are; 0. A study's unreadable runs are named by an error at the end."""
    roots = Roots.from_environment()
    if len(names) == 1 and names[0] in table.studies(roots):
        check(base is None, "--base", base, "given with adapters only: a study's runs name their base")
        check(out is None, "--out", out, "given with adapters only: a study's tables are in its own folder")
        return _study(roots, names[0])
    known = ", ".join(table.studies(roots)) or "none yet"
    try:
        frames = main.measure_adapters(names, base, roots)
    except BadInput as error:
        if error.field_name == "adapter" and error.value in names:
            raise BadInput(error.field_name, error.value, f"{error.legal} (studies here: {known})") from None
        raise
    print("\n".join(summary(frames)))
    if out is not None:
        main.write(Path(out), frames, {"schema": 1, "revision": main.REVISION, "adapters": list(names)})
        print(out)
    return 0


def measure_again(roots: Roots, study: str | None) -> BadInput | None:
    """Bring the tables of one study, or of all, up to date; what was wrong with the first that could not be measured.

    For those who want to go on without: figures that need no measures are drawn all the same. Among all studies, one
    without a finished run is nothing wrong.
    """
    problem = None
    for name in table.studies(roots) if study is None else [study]:
        try:
            main.measure_study(roots, name)
        except BadInput as error:
            if study is not None or isinstance(error, Corrupted):
                problem = problem or error
    return problem


def _study(roots: Roots, name: str) -> int:
    try:
        folder = main.measure_study(roots, name)
    finally:
        made = roots.studies / name / "measures"
        if (made / main.RECORD).exists():
            said = table.cells(roots, name, table.read_rows(roots, name, lambda _: False)[0])
            print("\n".join(summary(main.read(made), dict(zip(said["id"], said["method"])))))
    print(folder)
    return 0
