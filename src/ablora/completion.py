"""Completion in a shell: `eval "$(ablora -sc install=bash)"` in ~/.bashrc makes `ablora <TAB>` offer what may follow:
commands, studies, flags, and for `run` and `plan` every key and value of the configuration."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import get_args

SCRIPT = r"""_ablora() {
    local IFS=$'\n' line="${COMP_LINE:0:$COMP_POINT}" word offer
    word="${line##* }"
    COMPREPLY=()
    # bash cuts words at = and : and replaces only what stands behind the last of them
    local cut=""
    case "$COMP_WORDBREAKS" in *=*) case "$word" in *=*) cut="${word%"${word##*=}"}" ;; esac ;; esac
    for offer in $(COMP_LINE="$line" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null); do
        COMPREPLY+=("${offer#"$cut"}")
    done
}
complete -o nospace -o default -F _ablora ablora
"""
"""Offers of the program end in a space where the word is complete, so `nospace`; where there is none, file names."""

ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + SCRIPT


def answer(arguments: Sequence[str], takes: Mapping[str, str]) -> int:
    """Answer a shell: its script, or what may follow on the line in COMP_LINE; other shells are Hydra's to answer."""
    action, _, shell = arguments[-1].partition("=")
    if action == "install" and (script := install(shell)):
        print(script, end="")
    elif action == "query" and install(shell):
        print("\n".join(query(os.environ.get("COMP_LINE", ""), takes)))
    else:
        from ablora.config import hand_over

        return hand_over(arguments, commands=tuple(takes))
    return 0


def install(shell: str) -> str:
    """The script for a shell to evaluate; empty for one that we have none for."""
    return {"bash": SCRIPT, "zsh": ZSH}.get(shell, "")


def query(line: str, takes: Mapping[str, str]) -> list[str]:
    """What may replace the last word of `ablora ...`, as whole words; those that want no more end in a space.

    `takes`: for each command its arguments in the notation of `ablora --help`; STUDY, OVERRIDES and flags are read
    from it, so a new command is completed without a word here.
    """
    *before, word = line.lstrip().split(" ")
    words = [other for other in before if other][1:]
    if not words:
        return [f"{name} " for name in takes if name.startswith(word)]
    command, *rest = words
    wants = takes.get(command, "")
    flags = [f"{flag} " for flag in re.findall(r"--?[\w-]+", wants) if flag.startswith(word) and flag not in rest]
    if word.startswith("-"):
        return flags
    if rest and rest[-1] == "--only":
        return [f"{name} " for name in _failure_classes() if name.startswith(word)]
    if "OVERRIDES" in wants:
        from ablora.config.offers import offers

        return offers([other for other in rest if not other.startswith("-")], word)
    if "STUDY" in wants and not [other for other in rest if not other.startswith("-")]:
        return [f"{name} " for name in _studies() if name.startswith(word)]
    return flags if not word else []


def _studies() -> list[str]:
    from ablora.store.roots import Roots
    from ablora.study.manifest import names

    return names(Roots.from_environment())


def _failure_classes() -> tuple[str, ...]:
    from ablora.store.run_folder import FailureClass

    return get_args(FailureClass)
