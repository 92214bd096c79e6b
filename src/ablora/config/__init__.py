"""From a command line to plain resolved trees: the only place, with the plug-in, that knows Hydra and OmegaConf."""

from ablora.config.entry import answer, hydra_main, sweep
from ablora.config.handover import hand_over, is_hydras, own_conf
from ablora.config.question import Question, ask
from ablora.config.usage import usage

__all__ = ["Question", "answer", "ask", "hand_over", "hydra_main", "is_hydras", "own_conf", "sweep", "usage"]
