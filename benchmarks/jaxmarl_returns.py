"""Our learner in JaxMARL's worlds, against its own QMIX, VDN and PQN-VDN, at equal env steps.

Its scripts run from a checkout given by path with their own configurations (env steps apart, and in
SMAX the hidden width, made for a GPU), and report the mean return of greedy episodes; ours are
trained by the package's training loop in the same world and fly as many episodes. All seeds of ours
are side by side in one program. Compilation is left out of every speed, and so are the greedy
episodes. Saves after every learner; those that the file holds are skipped.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import RESULTS, parse, parser, save, seconds_of, show
from rival_jaxmarl import load_script, make_world

from jaxqmix.compilation import compile_ahead, enable_cache
from jaxqmix.config import EnvConfig, LearnerConfig, RunConfig, TrainingConfig
from jaxqmix.env.base import Environment
from jaxqmix.evaluation import evaluator, t_interval
from jaxqmix.training import in_world, make_trainer

SPREAD = "MPE_simple_spread_v3"
WORLDS = (SPREAD, "3m", "2s3z")
"""The last are scenarios of SMAX."""
THEIRS = {"qmix": "ql_rnn", "vdn": "ql_rnn", "pqn_vdn": "pqn_vdn_rnn", "pqn_vdn_ff": "pqn_vdn_ff"}
"""Its algorithms, and the first words of their configurations."""
IN_SPREAD, IN_SMAX = ("qmix", "pqn_vdn_ff", "vdn"), ("qmix", "pqn_vdn", "vdn")
"""Which it suggests where."""
OURS = ("qmix", "vdn")
WIDTH = 64
"""Hidden width in SMAX, of theirs and ours; its configurations have 512."""
SMAX = {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest"}
"""As its configurations have it."""
EPISODES = 512
RETURN = "returned_episode_returns"
"""Its name of the metric."""


def our_world(name: str) -> Environment:
    """One of its worlds, for our learner."""
    from jaxqmix.adapters.jaxmarl import JaxMarlWorld

    if name == SPREAD:
        return JaxMarlWorld(make_world(name))
    return JaxMarlWorld(make_world("HeuristicEnemySMAX", name, **SMAX))


def their_seed(
    checkout: Path, world: str, algorithm: str, env_steps: int
) -> Callable[[int], tuple]:
    """Its training as a function of a seed: the greedy return at its end, and env steps/s."""
    from omegaconf import OmegaConf

    script = load_script(checkout, algorithm)
    folder = checkout / "baselines" / "QLearning" / "config" / "alg"
    kind = "mpe" if world == SPREAD else "smax"
    path = folder / f"{THEIRS[algorithm]}_{kind}.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(path))
    if world != SPREAD:
        settings |= {"MAP_NAME": world, "HIDDEN_SIZE": WIDTH}
    settings |= {"TOTAL_TIMESTEPS": env_steps, "TOTAL_TIMESTEPS_DECAY": env_steps}
    settings |= {"WANDB_MODE": "disabled", "ALG_NAME": algorithm, "TEST_NUM_ENVS": EPISODES}
    # Tested at both ends alone: by default its tests fly more steps than its training.
    settings |= {"TEST_INTERVAL": 1.0}
    env, _ = script.env_from_config(copy.deepcopy(settings))

    def compiled(**changes: Any) -> Callable:
        train = script.make_train(settings | changes, env)
        return jax.jit(train).lower(jax.random.PRNGKey(0)).compile()

    tested, untested = compiled(), compiled(TEST_DURING_TRAINING=False)

    def train(seed: int) -> tuple[float, float]:
        left = tested(jax.random.PRNGKey(seed))["runner_state"]
        found = [part for part in left if isinstance(part, dict) and RETURN in part]
        seconds = seconds_of(lambda: untested(jax.random.PRNGKey(seed)))
        return float(np.mean(found[0][RETURN])), env_steps / seconds

    return train


def settings_of_ours(world: str, mixer: str, env_steps: int) -> RunConfig:
    """What our runs have in a world, found on seed 0, which is not judged."""
    if world != SPREAD:
        return settings_in_smax(mixer, env_steps)
    rate, scale = {"qmix": (1e-3, 0.03), "vdn": (3e-3, 0.004)}[mixer]
    return RunConfig(
        env=EnvConfig(drones=3, neighbours=2, horizon=26),
        learner=LearnerConfig(
            mixer=mixer, gamma=0.9, trace=0.7, reward_scale=scale, learning_rate=rate, epochs=2
        ),
        training=TrainingConfig(
            swarms=32, rollout=26, env_steps=env_steps, epsilon_decay_steps=env_steps // 10
        ),
    )


def settings_in_smax(mixer: str, env_steps: int) -> RunConfig:
    """The same for both scenarios."""
    return RunConfig(
        env=EnvConfig(drones=3, neighbours=2, horizon=101),
        learner=LearnerConfig(
            mixer=mixer, hidden=WIDTH, gamma=0.99, trace=0.85, reward_scale=1.0,
            learning_rate=1e-3, epochs=4, minibatches=4,
        ),
        training=TrainingConfig(
            swarms=64, rollout=32, env_steps=env_steps, epsilon_decay_steps=env_steps // 5
        ),
    )  # fmt: skip


def our_seeds(config: RunConfig, seeds: list[int], world: Environment) -> dict[str, Any]:
    """Greedy returns of all seeds, and env steps/s over all of them."""
    config = in_world(config, world)
    trainer = make_trainer(config, len(seeds), world)
    shape = jax.ShapeDtypeStruct((), np.int32)
    programs, _ = compile_ahead({"train": (trainer.iterate, (trainer.state_shapes, shape))})
    state = trainer.init(seeds)
    started = time.perf_counter()
    state, _ = jax.block_until_ready(programs["train"](state, np.int32(config.iterations)))
    seconds = time.perf_counter() - started
    fly = evaluator(world, trainer.policy, EPISODES, seeds=len(seeds))
    metrics, _ = fly(state.learner.ema["agent"], 0, EPISODES)
    return {
        "returns": metrics["return"].mean(axis=0).tolist(),
        "env_steps_per_second": len(seeds) * config.budget / seconds,
    }


def main() -> None:
    """Trains, shows and saves."""
    line = parser(__doc__)
    line.add_argument("--jaxmarl", type=Path, required=True, help="a checkout of JaxMARL")
    line.add_argument("--world", default=SPREAD, choices=WORLDS)
    line.add_argument("--env-steps", type=int, default=1_000_000)
    line.add_argument("--seeds", type=int, default=5)
    line.add_argument("--first", type=int, default=1, help="seed; 0 was tuned on")
    arguments = parse(line)
    enable_cache()
    world = our_world(arguments.world)
    seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    path = (arguments.out or RESULTS) / "jaxmarl_returns.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    told = ("learner", "world", "env_steps", "seeds")
    known = [[row[name] for name in told] for row in rows]
    asked = [arguments.world, arguments.env_steps, seeds]

    def note(learner: str, returns: list[float], speed: float) -> None:
        mean, half = t_interval(returns)
        rows.append(
            dict(zip(told, [learner, *asked], strict=True))
            | {"returns": returns, "return": mean, "return_ci95": [mean - half, mean + half]}
            | {"env_steps_per_second": speed}
        )
        save("jaxmarl_returns", rows, arguments.out)

    for mixer in OURS:
        if [f"jaxqmix {mixer}", *asked] not in known:
            config = settings_of_ours(arguments.world, mixer, arguments.env_steps)
            found = our_seeds(config, seeds, world)
            note(f"jaxqmix {mixer}", found["returns"], found["env_steps_per_second"])
    for algorithm in IN_SPREAD if arguments.world == SPREAD else IN_SMAX:
        if [f"JaxMARL {algorithm}", *asked] not in known:
            train = their_seed(arguments.jaxmarl, arguments.world, algorithm, arguments.env_steps)
            returns, speeds = zip(*map(train, seeds), strict=True)
            note(f"JaxMARL {algorithm}", list(returns), float(np.median(speeds)))
    show(
        f"{arguments.world}, {arguments.env_steps:,} env steps, {EPISODES} greedy episodes each",
        ("learner", "return", "95 %", "env steps/s"),
        [
            (row["learner"], row["return"], "{:.1f} to {:.1f}".format(*row["return_ci95"]),
             row["env_steps_per_second"])
            for row in rows
            if row["world"] == arguments.world
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
