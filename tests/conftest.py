"""What several tests share: small worlds, and flights over them that compile once."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from jaxqmix import compilation
from jaxqmix.compilation import jit
from jaxqmix.config import DomainConfig, EnvConfig, RewardConfig
from jaxqmix.distributed import host_memory
from jaxqmix.env import dynamics, sensing, urban_grid
from jaxqmix.types import EAST, NORTH, SOUTH, WEST, State

# A program compiles once in a whole session of tests: workers and what tests start inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAXQMIX_CACHE"] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAXQMIX_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Two devices, however many cores: everything is tested as it runs on several.
jax.config.update("jax_num_cpu_devices", 2)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

TRAIN = (
    *("test_api", "test_benchmarks", "test_checkpoints", "test_cli", "test_comparison"),
    *("test_demo", "test_distributed", "test_faults", "test_federated_training"),
    *("test_notebooks", "test_processes", "test_readme", "test_seeds", "test_sweeps"),
    *("test_training", "test_validate"),
)
"""Files with tests that train whole runs."""
SLOW = (
    *("test_city", "test_city_files", "test_curves", "test_dynamics", "test_env_properties"),
    *("test_env_reference", "test_export", "test_federated_flower", "test_federated_nodes"),
    *("test_federated_rounds", "test_federated_rules", "test_learner", "test_mixers"),
    *("test_pettingzoo", "test_planners", "test_render", "test_render_browser"),
    *("test_render_notebook", "test_rollout", "test_sensing", "test_symmetry"),
)
"""Files with tests that compile a lot, or draw."""


LONGEST = (
    *("test_readme", "test_seeds", "test_training", "test_notebooks", "test_validate"),
    *("test_planners", "test_federated_training", "test_faults", "test_env_reference"),
    *("test_processes", "test_sweeps"),
)
"""Files that begin first, so that all workers end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of these files, so that `-m "not slow and not train"` leaves quick ones."""
    for item in items:
        for marker, files in (("train", TRAIN), ("slow", SLOW)):
            if item.path.stem in files:
                item.add_marker(marker)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as there are cores, and memory for: each grows to a few GB of programs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, (host_memory() or 8 * 10**9) // (4 * 10**9)))


@functools.cache
def quick_options() -> dict[str, Any]:
    """Compiler options for little runs and much compiles: half the time, and slower programs. Only
    those that this XLA knows."""

    def known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(1)
        except (jax.errors.JaxRuntimeError, ValueError):
            return False
        return True

    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
    return {name: value for name, value in options.items() if known(name, value)}


USERS_OPTIONS = dict(compilation._CPU_OPTIONS)
"""What users' programs are compiled with."""


@pytest.fixture(scope="session", autouse=True)
def quick_programs():
    """Programs of the package compile with `quick_options` here."""
    with mock.patch.dict(compilation._CPU_OPTIONS, quick_options()):
        yield


CITY_BLOCK = EnvConfig(
    drones=4,
    city_width=420.0,
    city_length=260.0,
    cell_size=20.0,
    horizon=60,
    no_fly_zones=1,
    neighbours=2,
    coverage_target=0.85,
)
"""13 x 21 cells of 20 m; random flights see nearly all of it."""

ROUGH = DomainConfig(
    building_density=(0.5, 2.0),
    wind_speed=(0.0, 20.0),
    turbulence=(0.0, 4.0),
    visibility=(0.4, 1.0),
    packet_loss=(0.0, 0.3),
    delay=(0.0, 0.3),
    sensor_noise=(0.0, 5.0),
    reward=RewardConfig(1.0, 0.3, 0.7, 20.0, 3.0, 4.0, 0.02),
)
"""Every disturbance, and a different weight for every reward term."""


def random_commands(key: jax.Array, state: State, config: EnvConfig) -> jax.Array:
    """Any action, obstructed or not; often a heading kept for ten steps, so that drones get about,
    and sometimes a move towards the middle of the city, so that they meet."""
    action_key, choice_key = jax.random.split(key)
    anything = jax.random.randint(action_key, (config.drones,), 0, 7)
    heading = (state.time // 10 + 3 * jnp.arange(config.drones)) % 4
    offset = state.position[:, :2] - jnp.array([config.city_width, config.city_length]) / 2
    along_x = jnp.where(offset[:, 0] > 0, WEST, EAST)
    along_y = jnp.where(offset[:, 1] > 0, NORTH, SOUTH)
    inward = jnp.where(jnp.abs(offset[:, 0]) > jnp.abs(offset[:, 1]), along_x, along_y)
    choice = jax.random.uniform(choice_key, (config.drones,))
    return jnp.where(choice < 0.2, inward, jnp.where(choice < 0.6, heading, anything))


@functools.cache
def compiled_flight(config: EnvConfig, steps: int, thorough: bool) -> Callable:
    """The compiled flight of a batch of swarms: (keys [B], params [B]) -> flight.

    Compiled as users' programs are when `thorough`; otherwise quickly, without optimisation.
    """

    def one_flight(key: jax.Array, params: Any) -> dict[str, Any]:
        reset_key, flight_key = jax.random.split(key)
        state, timestep = urban_grid.reset(reset_key, params, config)

        def one_step(state: Any, key: jax.Array) -> tuple[Any, Any]:
            command_key, step_key = jax.random.split(key)
            commands = random_commands(command_key, state, config)
            next_state, timestep = urban_grid.step(step_key, state, commands, params, config)
            return next_state, (next_state, timestep, commands, step_key)

        keys = jax.random.split(flight_key, steps)
        _, (states, timesteps, commands, step_keys) = jax.lax.scan(one_step, state, keys)
        air_keys = step_keys
        if config.sensing == "probabilistic":
            air_keys = jax.vmap(jax.random.split)(step_keys)[:, 0]
        chances, air = jax.vmap(dynamics.draw_disturbances, (0, None))(air_keys, config.drones)
        first_noise = jax.random.normal(jax.random.split(reset_key, 4)[3], (config.drones, 3))
        join = functools.partial(jax.tree.map, lambda a, b: jnp.concatenate([a[None], b]))
        states = join(state, states)
        return {
            "states": states,
            "timesteps": join(timestep, timesteps),
            "commands": commands,
            "chances": chances,
            "air": air,
            "first_noise": first_noise,
            "unseen": sensing.unpack_unseen(states.unseen, config),
            "step_keys": jax.random.key_data(step_keys),
            "params": params,
        }

    if thorough:
        with mock.patch.dict(compilation._CPU_OPTIONS, USERS_OPTIONS, clear=True):
            return jit(jax.vmap(one_flight))
    return jax.jit(jax.vmap(one_flight), compiler_options=quick_options())


@functools.cache
def compiled_draw(domain: DomainConfig):
    """The compiled drawing of a batch of worlds."""
    return jax.jit(jax.vmap(functools.partial(urban_grid.draw_params, domain=domain)))


def fly(
    config: EnvConfig,
    steps: int,
    swarms: int,
    seed: int,
    params: Any = None,
    thorough: bool = True,
) -> Any:
    """Random flights as NumPy arrays; states and timesteps [B, T + 1], everything else [B, T].

    But `first_noise`, of the positions observed at reset, is [B, N, 3].

    Args:
      config: static sizes.
      steps: T.
      swarms: B.
      seed: decides everything random.
      params: worlds [B]; drawn from `ROUGH` when None.
      thorough: see `compiled_flight`.
    """
    params_key, flight_key = jax.random.split(jax.random.key(seed))
    if params is None:
        params = compiled_draw(ROUGH)(jax.random.split(params_key, swarms))
    flights = compiled_flight(config, steps, thorough)(jax.random.split(flight_key, swarms), params)
    return jax.tree.map(np.asarray, flights)


def take(tree: Any, *index: int) -> Any:
    """One swarm, or one swarm at one time, of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(scope="session", name="city_block")
def city_block_fixture() -> EnvConfig:
    """A small non-square city."""
    return CITY_BLOCK


@pytest.fixture(scope="session", name="rough")
def rough_fixture() -> DomainConfig:
    """A domain with every disturbance."""
    return ROUGH


@pytest.fixture(scope="session", name="fly")
def fly_fixture() -> Callable:
    """The function `fly`."""
    return fly


@pytest.fixture(scope="session", name="take")
def take_fixture() -> Callable:
    """The function `take`."""
    return take
