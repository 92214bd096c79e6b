"""The application as Hydra sees it: the ordinary `hydra.main`, and what the Sweeper plug-in calls."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ablora.config.axes import EXECUTION
from ablora.config.budget import solved
from ablora.config.compose import Composer
from ablora.config.loader import CONFIG, conf_dir, current_loader, plain, translated
from ablora.config.question import Question, ask_with
from ablora.spec import BadInput
from ablora.study.cell import Cell
from ablora.study.execution import execution_of


def hydra_main() -> None:
    """One run, or with `-m` whatever sweeper is configured; a user's mistake is one message and exit code 2."""
    try:
        with translated():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG)(_run_one)()
    except BadInput as error:
        leave(error)


def sweep(loader: ConfigLoader, always: Sequence[str], arguments: Sequence[str]) -> None:
    """A multirun that came through Hydra: the same study that `ablora run -m` makes."""
    try:
        question = ask_with(loader, arguments, multirun=True, always=always)
        _answer(question)
    except BadInput as error:
        leave(error)


def leave(error: BadInput) -> None:
    """Hydra would print a traceback and exit with 1."""
    print(f"ablora: {error}", file=sys.stderr)
    sys.exit(2)


def _run_one(config: DictConfig) -> None:
    try:
        written = list(HydraConfig.get().overrides.task)
        with current_loader() as loader:
            tree, budget = solved(Composer(loader), plain(config, resolve=False), written)
        cell = Cell({key: value for key, value in tree.items() if key not in EXECUTION}, {}, (), budget=budget)
        _answer(Question((cell,), execution_of(tree), (), sweeping=False))
    except BadInput as error:
        leave(error)


def answer(question: Question, again: bool = False, strict: bool = False) -> int:
    """Run what a question asks for; the exit code. Late imports: they bring torch, and `--help` needs none of it."""
    cells, execution, arguments = question.cells, question.execution, question.arguments
    if question.search is not None:
        from ablora.tune.main import answer as search

        return search(question.search, cells, execution, arguments, again, strict)
    from ablora.study.main import answer as run

    return run(cells, execution, arguments, question.sweeping, again, confirm=question.confirm, strict=strict)


def _answer(question: Question) -> None:
    if code := answer(question):
        sys.exit(code)
