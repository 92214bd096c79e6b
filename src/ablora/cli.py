"""The command line. Each command imports what it needs when it is given: `ablora status` starts in a moment."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ablora.spec import BadInput, check

NEWCOMER = """\
ablora: which low-rank adaptation method is best for a model and a task, and why

  ablora run method=milora rank=8 train.lr=1e-3            one run, with a live progress bar
  ablora run -m method=lora,pissa,milora seed=0,1,2        a study: every combination
  ablora plan -m method=lora,pissa,milora seed=0,1,2       what that would do, without doing it
  ablora status STUDY                                      where each of its runs stands
  ablora figures STUDY                                     its figures and tables

All commands: ablora --help. What can be chosen: ablora run --help. Does it work here: ablora doctor"""

MULTIRUN = {"-m", "--multirun"}


class Command(NamedTuple):
    """A subcommand: what it takes, one line of help, and what it does with its arguments."""

    takes: str
    help: str
    main: Callable[[Sequence[str]], int]


def run(arguments: Sequence[str]) -> int:
    """Run one cell, or with `-m` or a sweep file a study of them; some arguments are Hydra's own to answer."""
    from ablora.config import ask, hand_over, is_hydras, own_conf, usage

    if {"-h", "--help"} & {*arguments}:
        print(usage())
        return 0
    rest, beside = own_conf(arguments)
    if any(map(is_hydras, rest)):
        return hand_over(arguments)
    overrides, flags = _split(rest, {*MULTIRUN, "--retry", "--strict"})
    question = ask(overrides, multirun=bool(flags & MULTIRUN), beside=beside)
    from ablora.config import answer

    return answer(question, again="--retry" in flags, strict="--strict" in flags)


def plan(arguments: Sequence[str]) -> int:
    """Print what `run` would do."""
    from ablora.config import ask, own_conf, usage

    if {"-h", "--help"} & {*arguments}:
        print(usage())
        return 0
    rest, beside = own_conf(arguments)
    overrides, flags = _split(rest, {*MULTIRUN, "--strict"})
    question = ask(overrides, multirun=bool(flags & MULTIRUN), beside=beside)
    if question.search is not None:
        from ablora.tune.describe import describe_search

        print("\n".join(describe_search(question.search, question.cells, question.execution, "--strict" in flags)))
        return 0
    from ablora.study.dry_run import describe

    print("\n".join(describe(question.cells, question.execution, question.confirm, _evidence, "--strict" in flags)))
    return 0


def prepare(arguments: Sequence[str]) -> int:
    """Fill the caches for a study, or for what `run` would do with the same arguments."""
    from ablora.config import ask, own_conf
    from ablora.study.prepare import prepare_cells, prepare_study

    rest, beside = own_conf(arguments)
    overrides, flags = _split(rest, MULTIRUN)

    if len(overrides) == 1 and "=" not in overrides[0]:
        lines = prepare_study(overrides[0])
    else:
        lines = prepare_cells(ask(overrides, multirun=bool(flags & MULTIRUN), beside=beside).cells)
    for line in lines:
        print(line, flush=True)
    return 0


def study_searches(name: str) -> bool:
    from ablora.tune.entry import study_searches

    return study_searches(name)


def _evidence(*of_study: Any) -> Iterable[str]:
    """What a study's seeds can show, where the analysis is installed."""
    try:
        from ablora_analysis.before_launch import lines
    except ModuleNotFoundError as error:
        return [f"statistics: not told without {error.name}: pip install 'ablora[analysis]'"]
    return lines(*of_study)


def status(arguments: Sequence[str]) -> int:
    """Print where every run of a study stands, or the counts of every study."""
    parser = _parser("status")
    parser.add_argument("study", metavar="STUDY", nargs="?")
    parser.add_argument("--check-stale", action="store_true", help="hash every done run's specification and data again")
    given = parser.parse_args(arguments)
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study, require_any
    from ablora.study.status import counts, study_standings, table, with_stale

    roots = Roots.from_environment()
    if given.study is None:
        for name in require_any(roots):
            print(f"{name}: {counts(study_standings(roots, existing_study(roots, name)))}")
        return 0
    study = existing_study(roots, given.study)
    if study_searches(given.study):
        from ablora.tune.report import status_lines

        print("\n".join(status_lines(roots, study)))
    rows = study.rows()
    found = study_standings(roots, study)
    print("\n".join(table(study, rows, with_stale(roots, found) if given.check_stale else found)))
    return 0


def watch(arguments: Sequence[str]) -> int:
    """Show a study's runs as they go."""
    name = _study("watch", arguments)
    study_searches(name)
    from ablora.store.roots import Roots
    from ablora.study.watch import watch

    return watch(Roots.from_environment(), name)


def clean(arguments: Sequence[str]) -> int:
    """Free what a study's ended runs no longer need."""
    parser = _parser("clean")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--dry-run", action="store_true", help="say what would be freed, and free nothing")
    parser.add_argument("--snapshots", action="store_true", help="free snapshots/ too; the final adapter stays")
    parser.add_argument("--failed", action="store_true", help="also of failed runs: a retry then begins at step 0")
    given = parser.parse_args(arguments)
    from ablora.store.roots import Roots
    from ablora.study.clean import clean

    for line in clean(Roots.from_environment(), given.study, given.dry_run, given.snapshots, given.failed):
        print(line)
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """Say what this machine can do."""
    _parser("doctor").parse_args(arguments)
    from ablora.doctor import examine

    return examine()


def resume(arguments: Sequence[str]) -> int:
    """Go on with a study."""
    name = _study("resume", arguments)
    from ablora.tune.entry import resume

    return resume(name)


def cancel(arguments: Sequence[str]) -> int:
    """End what SLURM has of a study."""
    name = _study("cancel", arguments)
    from ablora.store.roots import Roots
    from ablora.study.cancel import cancel
    from ablora.study.manifest import existing_study

    for line in cancel(existing_study(Roots.from_environment(), name)):
        print(line)
    return 0


def retry(arguments: Sequence[str]) -> int:
    """Go on with a study and try failed runs again."""
    parser = _parser("retry")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--only", metavar="CLASS", help="only failures of this class, such as out_of_memory")
    given = parser.parse_args(arguments)
    from ablora.tune.entry import retry

    return retry(given.study, given.only)


def collect(arguments: Sequence[str]) -> int:
    """Write a study's table and print where."""
    name = _study("collect", arguments)
    study_searches(name)
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora_analysis import table

    roots = Roots.from_environment()
    print(table.collect(roots, existing_study(roots, name).name))
    return 0


def analyse(arguments: Sequence[str]) -> int:
    """Measure a study's adapters, or any: what they add to the base and how much two of them have in common."""
    parser = _parser("analyse")
    parser.add_argument("names", metavar="STUDY or ADAPTER", nargs="+", help="a study; or runs and folders of PEFT's")
    parser.add_argument("--base", metavar="FOLDER", help="where the adapters' base is: a folder, or pico")
    parser.add_argument("--out", metavar="DIR", help="write the tables of adapters there (a study has its own place)")
    given = parser.parse_args(arguments)
    from ablora_analysis.measure import command

    return command.analyse(given.names, given.base, given.out)


def figures(arguments: Sequence[str]) -> int:
    """Measure what has changed, draw figures and print where."""
    parser = _parser("figures")
    parser.add_argument("study", metavar="STUDY", nargs="?")
    given = parser.parse_args(arguments)
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study, require_any
    from ablora.study.status import require_done

    roots = Roots.from_environment()
    if given.study is None:
        require_any(roots)
    else:
        study_searches(given.study)
        require_done(roots, existing_study(roots, given.study))
    from ablora_analysis.figures import main
    from ablora_analysis.measure.command import measure_again

    problem = measure_again(roots, given.study)
    for path in main.draw_all(roots, given.study):
        print(path)
    if problem is not None:
        raise problem
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write a study's page and print where, and how large it is."""
    name = _study("report", arguments)
    study_searches(name)
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora_analysis.report import main

    roots = Roots.from_environment()
    path = main.write(roots, existing_study(roots, name).name)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def sync(arguments: Sequence[str]) -> int:
    """Upload what was tracked offline."""
    parser = _parser("sync")
    parser.add_argument("study", metavar="STUDY", nargs="?")
    given = parser.parse_args(arguments)
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora.track import sync

    roots = Roots.from_environment()
    name = given.study and existing_study(roots, given.study).name
    return sync.sync(roots, name)


def export(arguments: Sequence[str]) -> int:
    """Package a run's adapter for another library and print where."""
    parser = _parser("export")
    parser.add_argument("run", metavar="RUN", help="the id or folder of a run that is done")
    parser.add_argument("--to", metavar="LIBRARY", default="peft", help="peft, the only one")
    parser.add_argument("--output", metavar="DIR", help="where to; default: RUN-peft, here")
    given = parser.parse_args(arguments)
    from ablora.store.roots import Roots
    from ablora.study.export import export

    print(export(Roots.from_environment(), given.run, given.to, given.output and Path(given.output)))
    return 0


def pretrain(arguments: Sequence[str]) -> int:
    """Hand over to the embedded base's recipe."""
    from ablora.models.pretrain import cli

    return cli.main(list(arguments)) or 0


COMMANDS = {
    "run": Command("[-m] [--retry] [--strict] OVERRIDES", "one run, or with -m or +sweeps=NAME a study", run),
    "plan": Command("[-m] [--strict] OVERRIDES", "what run would do with the same arguments; writes nothing", plan),
    "prepare": Command("STUDY or [-m] OVERRIDES", "fill the caches ahead of a study, on a node with network", prepare),
    "status": Command("[STUDY] [--check-stale]", "where each run of a study stands", status),
    "watch": Command("STUDY", "the same, live, until nothing of it runs or waits", watch),
    "resume": Command("STUDY", "go on with a study from its manifest", resume),
    "cancel": Command("STUDY", "end a study's tasks in SLURM", cancel),
    "retry": Command("STUDY [--only CLASS]", "run a study's failed runs again", retry),
    "collect": Command("STUDY", "one table of a study's results (parquet and CSV)", collect),
    "analyse": Command("STUDY or ADAPTER...", "subspace, projection and spectrum of what was learnt", analyse),
    "figures": Command("[STUDY]", "draw every figure and table from the run folders", figures),
    "report": Command("STUDY", "one HTML page of a study: results, every run, interactive plots, figures", report),
    "export": Command("RUN [--to peft] [--output DIR]", "a run's adapter as a folder that PEFT loads", export),
    "sync": Command("[STUDY]", "upload what was tracked offline", sync),
    "clean": Command(
        "STUDY [--dry-run] [--snapshots] [--failed]",
        "free the checkpoints of runs that are done or have diverged",
        clean,
    ),
    "doctor": Command("", "what this machine can do, and what to type where it cannot", doctor),
    "pretrain": Command("...", "train the embedded base model again", pretrain),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 2 the user's mistake, 3 runs that are not done, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(NEWCOMER)
        return 0
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print("\n".join(f"  ablora {key} {c.takes:<28} {c.help}" for key, c in COMMANDS.items()))
        return 0
    if name in ("-V", "--version"):
        print(metadata.version("ablora"))
        return 0
    if name in ("-sc", "--shell-completion"):
        from ablora import completion

        return completion.answer(arguments, {key: command.takes for key, command in COMMANDS.items()})
    try:
        check(name in COMMANDS, "COMMAND", name, _legal_commands(name))
        return COMMANDS[name].main(rest)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        if not _is_users(error):
            raise
        print(f"ablora: {error}", file=sys.stderr)
        return 2


def _is_users(error: ValueError) -> bool:
    from ablora.data._base import DataError

    return isinstance(error, BadInput | DataError)


def _legal_commands(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"{f'did you mean {close[0]}? ' if close else ''}one of {', '.join(COMMANDS)}"


def _study(command: str, arguments: Sequence[str]) -> str:
    """The name that a command is given which takes a study and nothing else."""
    parser = _parser(command)
    parser.add_argument("study", metavar="STUDY")
    return parser.parse_args(arguments).study


def _parser(name: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"ablora {name}", description=COMMANDS[name].help)


class _Parser(argparse.ArgumentParser):
    """Says which studies there are to someone who names none."""

    def error(self, message: str) -> NoReturn:
        from ablora.store.roots import Roots
        from ablora.study.manifest import names

        there = (
            f"; studies here: {', '.join(names(Roots.from_environment())) or 'none yet'}" if "STUDY" in message else ""
        )
        self.exit(2, f"ablora: {message}{there}\n{self.format_usage()}")


def _split(arguments: Sequence[str], legal: set[str]) -> tuple[list[str], set[str]]:
    """Overrides and flags, in any order."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    for flag in flags:
        check(flag in legal, "flag", flag, f"one of {', '.join(sorted(legal))}")
    return [argument for argument in arguments if argument not in flags], flags


if __name__ == "__main__":
    sys.exit(main())
