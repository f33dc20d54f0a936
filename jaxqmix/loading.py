"""Policies ready to fly, with their worlds: trained, scripted, or anybody's own."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix import checkpoints
from jaxqmix.compilation import enable_cache, jit
from jaxqmix.config import (
    DomainConfig,
    EnvConfig,
    RunConfig,
    refuse,
    require,
)
from jaxqmix.env.base import Environment
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.urban_grid import PARTS, Parts, UrbanGrid, mission_env
from jaxqmix.learner.networks import Parameters
from jaxqmix.maps import CityMap, stack, with_city, without_city
from jaxqmix.metrics import flat_settings
from jaxqmix.planners import planner
from jaxqmix.training import greedy_policy, in_world, make_parts
from jaxqmix.types import Policy, State, Timestep


def make(
    config: RunConfig | EnvConfig,
    domain: DomainConfig | None = None,
    city: str | Path | CityMap | None = None,
    parts: Parts = PARTS,
) -> UrbanGrid:
    """An environment.

    Args:
      config: a run's config, or an `EnvConfig` alone.
      domain: the ranges worlds are drawn from; by default the run's, or the defaults.
      city: flies over this city file, over those of this folder, or over this `CityMap`, whose
        sizes replace the config's; see `jaxqmix.with_city`.
      parts: of the world, to put one's own in: `Parts(terms=(*TERMS, mine))`.

    Raises:
      ConfigError: on another type, and when the city cannot be read, or cannot be flown over.
    """
    enable_cache()
    allowed = "must be a RunConfig, such as jaxqmix.preset('quick'), or an EnvConfig"
    require(isinstance(config, RunConfig | EnvConfig), "config", shown(config), allowed)
    env, ranges = (config.env, config.domain) if isinstance(config, RunConfig) else (config, None)
    env = with_city(env, city)
    cities = stack([city], env) if isinstance(city, CityMap) else None
    return UrbanGrid(env, domain or ranges or DomainConfig(), cities, parts)


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """A policy with the config that it flies under; `load_policy` and `scripted` make it.

    `policy` chooses actions for one swarm (see `jaxqmix.Policy`).
    """

    name: str
    config: RunConfig
    make_policy: Callable[[RunConfig, Environment | None], Policy] = dataclasses.field(repr=False)
    """From the config and the world."""
    origin: RunConfig | None = dataclasses.field(default=None, repr=False)
    """What the policy was trained or made for, where that may differ from `config`."""
    world: Environment | None = dataclasses.field(default=None, repr=False)
    """Where the policy flies, if that is another than the config's."""

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy for worlds of the config: a pytree, and hashable."""
        return self.make_policy(self.config, None if self.world is None else self.env)

    @property
    def env(self) -> Environment:
        """The world that the policy flies in."""
        return make(self.config) if self.world is None else self.world.under(self.config)

    def under(self, config: RunConfig) -> LoadedPolicy:
        """The same policy under another config: another weather, say, or more drones."""
        require_config(config)
        if self.world is not None and not isinstance(self.world, UrbanGrid):
            config = in_world(config, self.world)
        return dataclasses.replace(self, config=config, origin=self.origin or self.config)

    def inside(self, world: Environment) -> LoadedPolicy:
        """The same policy in a world of one's own."""
        config, origin = in_world(self.config, world), self.origin or self.config
        return dataclasses.replace(self, config=config, world=world, origin=origin)

    @property
    def changed(self) -> dict[str, Any]:
        """Settings of the world that differ from those of `origin`, by dotted names."""
        now, before = flat_settings(self.config), flat_settings(self.origin or self.config)
        world = {name: now[name] for name in now if name.startswith(("env.", "domain."))}
        return {name: value for name, value in world.items() if value != before[name]}


def load_policy(
    path: str | Path,
    drones: int | None = None,
    city: str | Path | None = None,
    env: Environment | None = None,
    **settings: Any,
) -> LoadedPolicy:
    """A trained policy.

    Args:
      path: a run's folder or one of its checkpoints.
      drones: fly with so many instead; the policy is the same for every swarm.
      city: fly over this city file, or the cities of this folder, instead.
      env: the world that it was trained in, where that was given to `train`.
      **settings: of the run to change, as by `RunConfig.replace`: `**{"domain.packet_loss": 0.5}`.

    Raises:
      CheckpointError: when it is missing, damaged or foreign.
      ConfigError: on a setting that is not allowed, and when the city cannot be read, or the policy
        cannot observe it.
    """
    enable_cache()
    trained, parameters, _ = checkpoints.load(Path(path), env)
    make_policy = functools.partial(learned_policy, trained, parameters["agent"])
    loaded = LoadedPolicy(trained.learner.mixer, trained, make_policy, world=env)
    if drones is not None:
        settings["env.drones"] = drones
    if not settings and city is None:
        return loaded
    own = env is not None and (city is not None or not isinstance(env, UrbanGrid))
    what = "city" if city is not None else next(iter(settings), None)
    require(not own, what or "env", city or settings.get(str(what)), "the world says this itself")
    config = with_city(trained.replace(**settings), city)
    check_observation(config, trained)
    return loaded.under(config)


def learned_policy(
    trained: RunConfig,
    parameters: Parameters,
    config: RunConfig,
    world: Environment | None = None,
) -> Policy:
    """The greedy policy of an agent's parameters for worlds of a config, or for its own; raises
    `ConfigError` where drones observe other numbers there than those trained."""
    check_observation(config, trained)
    _, learner = make_parts(without_city(trained), axis=None, env=world)
    fits = jax.eval_shape(learner.init, jax.random.key(0)).ema["agent"]
    shapes = [jax.tree.map(lambda leaf: leaf.shape, agent) for agent in (fits, parameters)]
    allowed = (
        "agents observe other numbers there, or choose among other actions, than those trained"
    )
    require(shapes[0] == shapes[1], "env", shown(world), allowed)
    env = world or mission_env(without_city(config))
    return jit(lambda parameters: greedy_policy(learner, parameters, env, config))(parameters)


def check_observation(config: RunConfig, trained: RunConfig) -> None:
    """Raises `ConfigError` when drones in a world observe other numbers than those trained."""
    now, before = feature_slices(config.env), feature_slices(trained.env)
    changed = next((name for name in now | before if now.get(name) != before.get(name)), None)
    env, old, city = config.env, trained.env, config.env.city
    world = f"{env.columns} x {env.rows} cells of {env.cell_size:g} m"
    require(
        changed is None,
        "env" if city is None else "city",
        world if city is None else city,
        f"the policy was trained over {old.columns} x {old.rows} cells of {old.cell_size:g} m, and "
        f"over {world} `{changed}` of its observation is another; train there",
    )


def scripted(
    name: str, config: RunConfig, drones: int | None = None, city: str | Path | None = None
) -> LoadedPolicy:
    """A scripted planner under a run's config.

    Args:
      name: one of `jaxqmix.PLANNERS`.
      config: of the run.
      drones: fly with so many instead.
      city: fly over this city file, or the cities of this folder, instead.

    Raises:
      ConfigError: when there is no such planner, the drones do not fit, or the city cannot be read.
    """
    enable_cache()
    require_config(config)
    allowed = "planners fly over cities; jaxqmix.evaluate(scripted(...), env=...) flies one's own"
    require(not config.world, "world", config.world, allowed)
    # A planner knows the true state, whatever a trained policy was blind to.
    config = config.replace(**{"env.blind_to": ()})
    loaded = LoadedPolicy(name, config, functools.partial(planned_policy, name))
    if drones is not None:
        config = config.replace(**{"env.drones": drones})
    config = with_city(config, city)
    planner(name, config.env)  # raises
    return loaded.under(config)


def planned_policy(name: str, config: RunConfig, world: Environment | None = None) -> Policy:
    """A scripted planner for worlds of a config, and for cities with parts of one's own.

    It flies as if drones saw what the package's sensors see, whatever the sensor.
    """
    city = world is None or isinstance(world, UrbanGrid) or name == "random"
    require(city, "policy", name, "it flies over cities only")
    return planner(name, config.env)


def require_config(config: Any) -> None:
    """Raises `ConfigError` unless it is a run's config."""
    require(
        isinstance(config, RunConfig),
        "config",
        shown(config),
        "must be a RunConfig, such as jaxqmix.preset('quick')",
    )


def shown(value: Any) -> str:
    """A value in an error: short, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_loaded_policy(
    policy: LoadedPolicy | Policy | Callable,
    config: RunConfig | None = None,
    city: str | Path | CityMap | None = None,
    env: Environment | None = None,
) -> tuple[LoadedPolicy, Environment]:
    """Any policy with the config that it flies under, and the world.

    Args:
      policy: a loaded policy, a policy, or a function `(key, state, timestep, hidden_state) ->
        (actions, hidden_state)` without a hidden state (then it gets `()`).
      config: required with a bare policy; takes the place of a loaded policy's own.
      city: as of `make`.
      env: as of `evaluate`.

    Raises:
      ConfigError: when it is none of these, or does not fit the world.
    """
    if isinstance(policy, LoadedPolicy):
        loaded = policy if config is None else policy.under(config)
        loaded = loaded if env is None else loaded.inside(env)
    else:
        words = "must be a policy: jaxqmix.load_policy(run), jaxqmix.scripted(name, config), or a "
        words += "function (key, state, timestep, hidden_state) -> (actions, hidden_state)"
        require(callable(policy) and not isinstance(policy, type), "policy", shown(policy), words)
        if config is None:
            refuse("config", None, "give the RunConfig under which the policy flies")
        require_config(config)
        name = getattr(policy, "__name__", type(policy).__name__)
        flown: Policy = policy if is_tree(policy) else Opaque(policy)  # type: ignore[assignment]
        loaded = LoadedPolicy(name, in_world(config, env), lambda *_: flown, world=env)
        check_policy(flown, loaded.env)
    if city is None:
        return loaded, loaded.env
    if loaded.world is not None:
        refuse("city", shown(city), "the policy flies in a world of its own")
    loaded = loaded.under(with_city(loaded.config, city))
    return loaded, make(loaded.config, city=city if isinstance(city, CityMap) else None)


def is_tree(policy: Any) -> bool:
    """Whether a policy is a pytree: programs then take its arrays as arguments."""
    return not jax.tree_util.all_leaves([policy]) and hasattr(policy, "initial_hidden_state")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Opaque:
    """A policy that JAX does not look into; compiled into programs, once for each object."""

    policy: Any

    def initial_hidden_state(self) -> Any:
        """The policy's, or () where it has none."""
        own = getattr(self.policy, "initial_hidden_state", None)
        if own is None and hasattr(self.policy, "initial_memory"):  # kept for one version
            warnings.warn(
                "initial_memory() of a policy is now initial_hidden_state()",
                DeprecationWarning,
                stacklevel=2,
            )
            own = self.policy.initial_memory
        return () if own is None else own()

    def __call__(self, key: jax.Array, state: State, timestep: Timestep, hidden_state: Any):
        """See `Policy`."""
        return self.policy(key, state, timestep, hidden_state)


def check_policy(policy: Policy, env: Environment) -> None:
    """Raises `ConfigError` when a policy's actions or hidden state have wrong shapes."""

    def first(key: jax.Array) -> tuple:
        state, timestep = env.reset(key, env.draw_params(key))
        hidden_state = jax.tree.map(jnp.asarray, policy.initial_hidden_state())
        output = policy(key, state, timestep, hidden_state)
        pair = isinstance(output, tuple) and len(output) == 2
        require(pair, "policy", shown(output), "must return a pair: actions and hidden state")
        return jnp.asarray(output[0]), hidden_state, jax.tree.map(jnp.asarray, output[1])

    def kinds(tree: Any) -> tuple:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    actions, before, after = jax.eval_shape(first, jax.random.key(0))
    right = actions.shape == (env.agents,) and jnp.issubdtype(actions.dtype, jnp.integer)
    returned = f"{actions.dtype}{list(actions.shape)}"
    require(right, "policy's actions", returned, f"must be integers [{env.agents}]")
    same = "must have the structure, shapes and types of initial_hidden_state()"
    require(kinds(before) == kinds(after), "policy's hidden state", shown(after), same)
