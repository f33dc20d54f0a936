"""The present system, Fed-MARL (github.com/JeyadeepakUR/Fed-MARL), through its own classes."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class FedMarl:
    """One of its environments with its learner, stepped as its `train_marl` does.

    The environment has its default features: weather, a no-fly zone, lossy radio, randomisation.
    """

    def __init__(self, checkout: Path, drones: int, side: float, cell_size: float):
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        from core.envs.urban_grid_env import UrbanGridEnv

        self.env = UrbanGridEnv(num_drones=drones, grid_size=[side, side, 500], cell_size=cell_size)
        self.drones = drones
        started = time.perf_counter()
        with quietly():
            self.observation, _ = self.env.reset()
        self.reset_seconds = time.perf_counter() - started
        self.agent: Any = None

    @property
    def features(self) -> int:
        """Length of a drone's observation."""
        return self.observation[0].shape[0]

    def step(self) -> None:
        """One env step under random actions."""
        self.env.step(np.random.randint(0, 7, self.drones))

    def make_agent(self) -> None:
        """Its learner with the sizes that its `train_marl` gives it, learning from single steps."""
        from core.agents.qmix_model import QMIXAgent

        with quietly():
            self.agent = QMIXAgent(
                n_agents=self.drones, obs_dim=self.features, action_dim=7, hidden_dim=256,
                mixing_hidden_dim=32, use_replay_buffer=False,
            )  # fmt: skip

    def train_step(self) -> None:
        """One env step and one gradient step from it."""
        seen = [self.observation[drone] for drone in range(self.drones)]
        actions = [self.agent.get_action(seen[drone], drone) for drone in range(self.drones)]
        self.observation, rewards, done, _, _ = self.env.step(actions)
        after = [self.observation[drone] for drone in range(self.drones)]
        self.agent.train_step(seen, actions, rewards, after, [done] * self.drones)


def quietly() -> contextlib.AbstractContextManager:
    """Its classes print while they work; that is neither shown nor measured as a terminal's."""
    return contextlib.redirect_stdout(io.StringIO())
