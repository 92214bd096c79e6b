"""Hydra's multirun as an ablora study: `-m` through any `hydra.main` makes the same manifest as `ablora run -m`.

Hydra's scanner executes this file in every Hydra application of the environment, before it is in `sys.modules`:
so no `from __future__ import annotations` (dataclasses would crash all of them), and ablora is imported late.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class AbloraSweeperConf:
    _target_: str = "hydra_plugins.ablora_hydra.sweeper.AbloraSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="ablora", node=AbloraSweeperConf, provider="ablora")


class AbloraSweeper(Sweeper):
    """Hands all arguments to the study; with a launcher other than Hydra's basic one, to Hydra's basic sweeper."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        if not self.config.hydra.launcher._target_.endswith("BasicLauncher"):
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            basic = BasicSweeper(max_batch_size=None)
            basic.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
            return basic.sweep(arguments)
        from ablora.config import sweep

        return sweep(self.hydra_context.config_loader, list(self.config.hydra.overrides.hydra), arguments)
