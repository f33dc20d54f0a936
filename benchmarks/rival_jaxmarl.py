"""JaxMARL (github.com/FLAIROx/JaxMARL): its environments, its learners, and ours in its world."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import chained, seconds_of

from jaxqmix.config import EnvConfig, LearnerConfig, ReplayConfig, RunConfig, TrainingConfig
from jaxqmix.env.base import Environment
from jaxqmix.training import Trainer, in_world, make_trainer

WORLDS = ("MPE_simple_spread_v3", "HeuristicEnemySMAX")


def make_world(name: str, scenario: str = "3s_vs_5z", **settings: Any) -> Any:
    """One of its environments; SMAX in a scenario, by default of its own QMIX configuration."""
    from jaxmarl import make
    from jaxmarl.environments.smax import map_name_to_scenario

    if name.startswith("MPE"):
        return make(name)
    return make(name, scenario=map_name_to_scenario(scenario), **settings)


def available_actions(env: Any, state: Any) -> dict[str, jax.Array]:
    """1 for every action that an agent may choose; environments without a mask allow all."""
    try:
        return env.get_avail_actions(state)
    except NotImplementedError:
        return {agent: jnp.ones(env.action_space(agent).n) for agent in env.agents}


def world_flight(env: Any, swarms: int, steps: int) -> Callable[[], Any]:
    """Steps its environment, which resets itself, under random available actions."""

    def step(key: jax.Array, state: Any) -> tuple[Any, Any]:
        action_key, step_key = jax.random.split(key)
        keys = dict(zip(env.agents, jax.random.split(action_key, env.num_agents), strict=True))
        available = available_actions(env, state)
        actions = {
            agent: jax.random.categorical(keys[agent], jnp.log(available[agent]))
            for agent in env.agents
        }
        observation, state, _, _, _ = env.step(step_key, state, actions)
        return observation, state

    def fly(carry: tuple) -> tuple:
        def body(carry: tuple, _: None) -> tuple[tuple, None]:
            key, _, state = carry
            key, now = jax.random.split(key)
            return (key, *jax.vmap(step)(jax.random.split(now, swarms), state)), None

        return jax.lax.scan(body, carry, None, steps)[0]

    key = jax.random.key(0)
    carry = (key, *jax.vmap(env.reset)(jax.random.split(key, swarms)))
    call = chained(jax.jit(fly, donate_argnums=0), carry)
    for _ in range(2):  # what its reset and its step return differs in types: it compiles twice
        call()
    return call


def load_script(checkout: Path, algorithm: str) -> Any:
    """Its training script as a module; what it would report to the web is left out."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        sys.modules["wandb"] = types.ModuleType("wandb")
    name = algorithm if algorithm.endswith("_ff") else f"{algorithm}_rnn"
    path = checkout / "baselines" / "QLearning" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"jaxmarl_{algorithm}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_settings(checkout: Path, env_steps: int) -> dict[str, Any]:
    """Its own configuration for simple_spread, in short and without evaluations."""
    from omegaconf import OmegaConf

    path = checkout / "baselines" / "QLearning" / "config" / "alg" / "ql_rnn_mpe.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(path))
    changes = {"TOTAL_TIMESTEPS": env_steps, "TEST_DURING_TRAINING": False}
    return settings | changes | {"WANDB_MODE": "disabled"}


def their_training(checkout: Path, algorithm: str, settings: dict[str, Any]) -> Callable[[], float]:
    """Env steps per second of its script, at every call.

    Its beginning, when nothing is learned yet, is left out: the time of a run that ends there is
    taken from the time of a whole one.
    """
    script = load_script(checkout, algorithm)
    env, _ = script.env_from_config(copy.deepcopy(settings))
    key = jax.random.PRNGKey(0)
    chunk = settings["NUM_STEPS"] * settings["NUM_ENVS"]
    first = -(-settings["LEARNING_STARTS"] // chunk)
    counts = (first, first + settings["TOTAL_TIMESTEPS"] // chunk)

    def whole(updates: int) -> Callable:
        train = script.make_train(settings | {"TOTAL_TIMESTEPS": updates * chunk}, env)
        return jax.jit(train).lower(key).compile()

    early, late = (whole(count) for count in counts)

    def measured() -> float:
        seconds = seconds_of(lambda: late(key)) - seconds_of(lambda: early(key))
        return (counts[1] - counts[0]) * chunk / seconds

    return measured


def matched(algorithm: str, settings: dict[str, Any]) -> RunConfig:
    """Our run with its network, rollouts, replay and number of updates."""
    hidden, width = settings["HIDDEN_SIZE"], settings["MIXER_EMBEDDING_DIM"]
    return RunConfig(
        env=EnvConfig(drones=3, neighbours=2),
        learner=LearnerConfig(
            network="gru", hidden=hidden, layers=1, mixer=algorithm, mixing_width=width,
            target_update=1 / settings["TARGET_UPDATE_INTERVAL"],
            epochs=settings["NUM_EPOCHS"], minibatches=1,
        ),
        replay=ReplayConfig(
            capacity=settings["BUFFER_SIZE"], batch=settings["BUFFER_BATCH_SIZE"],
            warmup=settings["BUFFER_BATCH_SIZE"],
        ),
        training=TrainingConfig(
            mode="replay", swarms=settings["NUM_ENVS"], rollout=settings["NUM_STEPS"],
            env_steps=settings["TOTAL_TIMESTEPS"],
        ),
    )  # fmt: skip


def trainer_in(world: Environment, config: RunConfig) -> Trainer:
    """Our training loop in another world."""
    return make_trainer(in_world(config, world), env=world)
