"""Does a library that knows nothing of us train on our world? PPO of Stable-Baselines3, SuperSuit.

The drones of several swarms are its vector of environments, one network flies them all, and the
mask of available actions is a part of what they observe. Coverage over held-out seeds is told
before and after. Needs: pip install stable-baselines3 supersuit, which need PyTorch, and
".[pettingzoo]".
"""

from __future__ import annotations

import importlib.metadata
import time

import numpy as np
from common import parse, parser, save, show

from jaxqmix.adapters.pettingzoo import parallel_env
from jaxqmix.evaluation import t_interval
from jaxqmix.presets import PRESETS, preset

HELD_OUT = 10**6
"""First seed of the episodes that judge."""


def fly(policy: object, preset_name: str, episodes: int) -> list[float]:
    """Coverage at the end of each held-out episode, flown greedily by one policy for all drones."""
    env, found = parallel_env(preset(preset_name)), []
    for number in range(episodes):
        observations, infos = env.reset(seed=HELD_OUT + number)
        while env.agents:
            agents = list(env.agents)
            seen = {
                part: np.stack([observations[agent][part] for agent in agents])
                for part in ("observation", "action_mask")
            }
            chosen, _ = policy.predict(seen, deterministic=True)
            actions = {agent: int(action) for agent, action in zip(agents, chosen, strict=True)}
            observations, _, _, _, infos = env.step(actions)
        found.append(next(iter(infos.values()))["coverage"])
    return found


def main() -> None:
    """Trains, shows and saves."""
    line = parser(__doc__)
    line.add_argument("--preset", default="quick", choices=list(PRESETS))
    line.add_argument("--env-steps", type=int, default=20_000, help="of a swarm, over all swarms")
    line.add_argument("--swarms", type=int, default=4)
    line.add_argument("--episodes", type=int, default=16, help="that judge")
    arguments = parse(line)
    import supersuit
    from stable_baselines3 import PPO

    env = parallel_env(preset(arguments.preset))
    drones = len(env.possible_agents)
    vector = supersuit.pettingzoo_env_to_vec_env_v1(env)
    vector = supersuit.concat_vec_envs_v1(vector, arguments.swarms, base_class="stable_baselines3")
    vector.seed = lambda seed=None: None  # SuperSuit's wrapper has none, and PPO asks for it
    samples = arguments.env_steps * drones
    model = PPO("MultiInputPolicy", vector, n_steps=64, batch_size=256, gamma=0.97, seed=0)
    before = fly(model, arguments.preset, arguments.episodes)
    started = time.perf_counter()
    model.learn(samples)
    seconds = time.perf_counter() - started
    after = fly(model, arguments.preset, arguments.episodes)
    told = [f"{mean:.1%} ± {half:.1%}" for mean, half in map(t_interval, (before, after))]
    rows = {
        "preset": arguments.preset,
        "env_steps": arguments.env_steps,
        "env_steps_per_second": arguments.env_steps / seconds,
        "coverage_before": t_interval(before),
        "coverage_after": t_interval(after),
        "libraries": {
            name: importlib.metadata.version(name)
            for name in ("stable-baselines3", "supersuit", "torch", "pettingzoo")
        },
    }
    show(
        f"PPO of Stable-Baselines3 in {arguments.preset}, {arguments.env_steps:,} env steps",
        ("coverage before", "after", "env steps/s"),
        [(*told, rows["env_steps_per_second"])],
    )
    save("stable_baselines", rows, arguments.out)


if __name__ == "__main__":
    main()
