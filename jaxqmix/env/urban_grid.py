"""The urban grid: reset and step of ONE swarm; `jax.vmap` makes many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from jaxqmix.compilation import require_float32, standard_promotion
from jaxqmix.config import DomainConfig, EnvConfig, RunConfig, require
from jaxqmix.env import dynamics, reward, sensing
from jaxqmix.env.base import Environment
from jaxqmix.env.city import coverable_cells, finish_city, generate_city
from jaxqmix.env.domain import draw_params
from jaxqmix.env.features import Feature, features
from jaxqmix.env.mission import CoverageMission, coverage
from jaxqmix.env.observation import agent_features, observe, symmetries
from jaxqmix.env.recording import FlightRecorder
from jaxqmix.env.reward import TERMS, Term
from jaxqmix.maps import load_cities
from jaxqmix.types import (
    ACTIONS,
    BORDER,
    BUILDING,
    HOVER,
    NO_FLY,
    RECEIVED,
    City,
    EnvParams,
    Events,
    State,
    Symmetries,
    Timestep,
    replace,
)


def is_tuple_of(kind: type, values: Any) -> bool:
    """Whether it is a tuple, and of nothing but these."""
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a world is made of besides its sizes; each may be replaced by one's own."""

    mission: type[CoverageMission] = CoverageMission
    """When an episode is complete, and what is counted of it."""
    terms: tuple[Term, ...] = TERMS
    """Of the reward."""
    sensor: sensing.Sensor | None = None
    """None: the one of `EnvConfig.sensing`."""
    features: tuple[Feature, ...] = ()
    """Of the observation, behind those of the table."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` on a part of another kind."""
        mission, sensor = self.mission, self.sensor
        wanted = {
            "mission": (isinstance(mission, type), "a class, such as CoverageMission"),
            "terms": (is_tuple_of(Term, self.terms), "a tuple of Term, such as (*TERMS, mine)"),
            "sensor": (isinstance(sensor, sensing.Sensor | None), "a Sensor or None"),
            "features": (
                is_tuple_of(Feature, self.features),
                "a tuple of Feature, such as (mine,)",
            ),
        }
        for name, (right, what) in wanted.items():
            require(right, f"Parts.{name}", getattr(self, name), f"must be {what}")

    def sensor_of(self, config: EnvConfig) -> sensing.Sensor:
        """The sensor of a world."""
        return self.sensor or sensing.SENSORS[config.sensing]


PARTS = Parts()
"""Those of the package's world."""


def reset(
    key: jax.Array,
    params: EnvParams,
    config: EnvConfig,
    city: City | None = None,
    parts: Parts = PARTS,
    time: jax.Array | None = None,
) -> tuple[State, Timestep]:
    """Starts an episode.

    Args:
      key: consumed once; it decides the city, the starts and the first look.
      params: the swarm's world.
      config: static sizes.
      city: flies over this city instead of a generated one.
      parts: of the world.
      time: [] int32, env steps of the episode that are gone already; none by default.

    Returns:
      The state, and a timestep with reward 0. What is seen from the starts is credited in the
      first step's reward.
    """
    require_float32()
    city_key, start_key, look_key, noise_key = jax.random.split(key, 4)
    if city is None:
        city = generate_city(city_key, params, config)
    heights, position = dynamics.start(start_key, city.heights, city.no_fly, config)
    sensor = parts.sensor_of(config)
    city = finish_city(heights, city.no_fly, params, config, sensor.radius)
    coverable = coverable_cells(city.no_fly, params.visibility, config, sensor.radius)
    unseen = sensing.pack_unseen(coverable, config)
    perimeter = sensing.perimeter(unseen.words)
    unseen, newly, growth = sensing.look(
        look_key, unseen, position, params.visibility, config, sensor
    )
    still = jnp.zeros(config.drones, bool)
    hover = jnp.full(config.drones, HOVER, jnp.int32)
    state = State(
        city=city,
        unseen=unseen,
        position=position,
        last_action=hover,
        link=jnp.full(config.drones, RECEIVED, jnp.int32),
        obstruction=dynamics.obstructed_actions(city, position, config),
        time=jnp.int32(0) if time is None else time,
        seen=newly,
        perimeter=perimeter + growth,
    )
    noise = jax.random.normal(noise_key, (config.drones, 3))
    timestep = Timestep(
        observation=observe(state, params, noise, config, parts.features, sensor),
        reward=jnp.float32(0),
        terminated=jnp.bool_(False),
        truncated=jnp.bool_(False),
        metrics={
            "coverage": coverage(state),
            "reward_terms": jnp.zeros(len(parts.terms), jnp.float32),
            **vars(Events(hover, still, still, still, still)),
        },
    )
    return state, timestep


def known_actions(actions: jax.Array, config: EnvConfig) -> jax.Array:
    """Commands as int32 [N]; whoever is given an unknown one, below 0 or above 6, hovers.

    Raises:
      AssertionError: when they are not N whole numbers, while the program is traced.
    """
    actions = jnp.asarray(actions)
    chex.assert_shape(actions, (config.drones,), custom_message="actions are [drones]")
    chex.assert_type(actions, int)
    return jnp.where((actions >= 0) & (actions < len(ACTIONS)), actions, HOVER).astype(jnp.int32)


def checked_actions(actions: jax.Array, config: EnvConfig) -> jax.Array:
    """`known_actions`, and whoever asks with `checkify` is told of unknown ones.

    def step(key, state, actions, params):
        return env.step(key, state, checked_actions(actions, env.config), params)

    error, (state, timestep) = checkify.checkify(jax.jit(step))(key, state, actions, params)
    error.throw()
    """
    known = known_actions(actions, config)
    # Not in `step`: a check leaves a number in the program, of how many were traced before, and
    # the persistent cache would not know the program again.
    checkify.debug_check(
        jnp.all(known == actions),
        "actions = {actions} are not allowed: must lie between 0 and 6",
        actions=jnp.asarray(actions),
    )
    return known


def step(
    key: jax.Array,
    state: State,
    actions: jax.Array,
    params: EnvParams,
    config: EnvConfig,
    parts: Parts = PARTS,
) -> tuple[State, Timestep]:
    """Flies one env step.

    Args:
      key: consumed once.
      state: one swarm.
      actions: [N] whole numbers, commands; see `known_actions`.
      params: the swarm's world.
      config: static sizes.
      parts: of the world.

    Returns:
      The next state and its timestep. Stepping on after the end of an episode is defined and
      harmless; callers mask it.
    """
    actions = known_actions(actions, config)
    sensor = parts.sensor_of(config)
    key, look_key = jax.random.split(key) if sensor.needs_key else (key, None)
    chances, air = dynamics.draw_disturbances(key, config.drones)
    executed, link = dynamics.deliver(chances, actions, state.last_action, params)
    position, code = dynamics.move(
        state.position, executed, state.obstruction, air[:, :2], state.city, params, config
    )
    unseen, newly, growth = sensing.look(
        look_key, state.unseen, position, params.visibility, config, sensor
    )
    events = Events(
        executed=executed,
        conflict=dynamics.conflicts(state.position, position),
        building_hit=code == BUILDING,
        violation=code == NO_FLY,
        border=code == BORDER,
    )
    after = replace(
        state,
        unseen=unseen,
        position=position,
        last_action=executed,
        link=link,
        obstruction=dynamics.obstructed_actions(state.city, position, config),
        time=state.time + 1,
        seen=state.seen + newly,
        perimeter=state.perimeter + growth,
    )
    flown = transition(state, after, events)
    terminated = parts.mission(config, parts.terms, sensor.radius).complete(after)
    team_reward, added = reward.team_reward(flown, params.reward, config, parts.terms)
    timestep = Timestep(
        observation=observe(after, params, air[:, 2:], config, parts.features, sensor),
        reward=team_reward,
        terminated=terminated,
        truncated=(after.time >= config.horizon) & ~terminated,
        metrics={"coverage": flown.coverage, "reward_terms": added, **vars(events)},
    )
    return after, timestep


def transition(before: State, after: State, events: Events) -> reward.Transition:
    """What the reward's terms may look at, of the step between two states."""
    # The first step is credited with what was seen from the starts too.
    seen, perimeter = jnp.where(before.time == 0, 0, jnp.stack([before.seen, before.perimeter]))
    coverable = before.city.coverable
    return reward.Transition(
        before=before,
        after=after,
        events=events,
        newly_seen=after.seen - seen,
        perimeter_change=after.perimeter - perimeter,
        coverage_before=seen / jnp.maximum(coverable, 1),
        coverage=coverage(after),
        coverable=coverable,
        time=after.time,
    )


def draw_city(key: jax.Array, cities: City) -> City:
    """One of several stacked cities [C, ...]. Consumes the key once."""
    index = jax.random.randint(key, (), 0, cities.heights.shape[0])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], cities)


def once(what: str, names: Sequence[str]) -> None:
    """Raises `ConfigError` when a name is there twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, what, twice, "each needs a name of its own")


@dataclasses.dataclass(frozen=True)
class UrbanGrid(Environment):
    """`reset` and `step` with the static sizes, the domain and literal cities bound."""

    config: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    domain: DomainConfig = dataclasses.field(default_factory=DomainConfig)
    # Stacked, with an axis C in front: each episode draws one. Those of `config.city`, which
    # stands for them in comparisons; None generates cities.
    cities: City | None = dataclasses.field(default=None, compare=False, repr=False)
    parts: Parts = PARTS

    constants = ("city",)

    def __post_init__(self) -> None:
        """Reads the cities of `config.city`; raises `ConfigError` when it cannot, and when two
        features or two terms have the same name."""
        known = [feature.name for feature in features(self.config)] if self.parts.features else []
        once("features", [*known, *(feature.name for feature in self.parts.features)])
        if self.parts.sensor is not None:
            self.parts.sensor.check(self.config)
        once("terms", [term.name for term in self.parts.terms])
        if self.cities is None and self.config.city is not None:
            object.__setattr__(self, "cities", load_cities(self.config))

    @property
    def agents(self) -> int:  # type: ignore[override]
        """Drones N."""
        return self.config.drones

    @property
    def actions(self) -> int:  # type: ignore[override]
        """Number of actions A."""
        return len(ACTIONS)

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The most env steps of an episode."""
        return self.config.horizon

    @property
    def features(self) -> int:
        """Length D of an agent's observation."""
        return agent_features(self.config, self.parts.features)

    @property
    def mission(self) -> CoverageMission:
        """When an episode is complete, and what is counted of it."""
        radius = self.parts.sensor_of(self.config).radius
        return self.parts.mission(self.config, self.parts.terms, radius)

    @property
    def recorder(self) -> FlightRecorder:
        """Records an episode as an `Episode`."""
        return FlightRecorder(self.config, self.parts.sensor_of(self.config).radius)

    @property
    def told(self) -> bool:
        """Whether the config and the domain say everything."""
        drawn = self.cities is None or self.config.city is not None
        return type(self) is UrbanGrid and self.parts == PARTS and drawn

    def settings(self, config: RunConfig) -> RunConfig:
        """Those of a run, with this world's; its name where they do not say everything."""
        world = None if self.told else self.name
        return replace(config, env=self.config, domain=self.domain, world=world)

    def under(self, config: RunConfig) -> UrbanGrid:
        """The same parts over the cities of another config."""
        same = config.env.city == self.config.city
        cities = self.cities if same else None  # read anew
        return replace(self, config=config.env, domain=config.domain, cities=cities)

    def in_training(self, config: RunConfig) -> UrbanGrid:
        """Episodes end later than the mission."""
        return self.ending_at(config.training.coverage_target)

    def ending_at(self, progress: float) -> UrbanGrid:
        """The same world with missions that are complete at another coverage."""
        return replace(self, config=replace(self.config, coverage_target=progress))

    def with_domain(self, domain: Any) -> UrbanGrid:
        """The same world drawn from other ranges; raises `ConfigError` where a world of one's own
        draws by another function."""
        if type(self).draw_params is not UrbanGrid.draw_params:
            return super().with_domain(domain)  # type: ignore[return-value]
        return replace(self, domain=domain)

    def fixed(self, params: EnvParams) -> UrbanGrid:
        """The same world with these params in every episode; raises `ConfigError` for a world of
        one's own."""
        if type(self) is not UrbanGrid:
            return super().fixed(params)  # type: ignore[return-value]
        bound = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return FixedGrid(**bound, params=params)

    def symmetries(self) -> Symmetries:
        """Turns and reflections of the city; see `jaxqmix.env.symmetry`."""
        return symmetries(self.config, self.parts.features)

    @standard_promotion
    def draw_params(self, key: jax.Array) -> EnvParams:
        """Draws one swarm's world from the domain: float32 scalars, and wind [2] in m/s."""
        return draw_params(key, self.domain)

    @standard_promotion
    def reset(self, key: jax.Array, params: EnvParams) -> tuple[State, Timestep]:
        """Starts an episode of one swarm of N drones.

        Args:
          key: consumed once; it decides the city, the starts and the first look.
          params: the swarm's world, from `draw_params`.

        Returns:
          The state (positions [N, 3] in metres, for example), and a timestep with reward 0 and
          the observation: agents [N, D], available actions [N, A], the mixer's state [S].
        """
        return self._reset(key, params, jnp.int32(0))

    @standard_promotion
    def reset_at(
        self, key: jax.Array, params: EnvParams, time: jax.Array
    ) -> tuple[State, Timestep]:
        """As `reset`, with `time` [] int32 steps of the episode gone; past the first, what the
        start saw is credited to nobody. A world whose `reset` is one's own begins by that."""
        if type(self).reset is not UrbanGrid.reset:
            return self.reset(key, params)
        return self._reset(key, params, time)

    def _reset(self, key: jax.Array, params: EnvParams, time: jax.Array) -> tuple[State, Timestep]:
        city = None
        if self.cities is not None:
            key, city_key = jax.random.split(key)
            city = draw_city(city_key, self.cities)
        return reset(key, params, self.config, city, self.parts, time)

    @standard_promotion
    def step(
        self, key: jax.Array, state: State, actions: jax.Array, params: EnvParams
    ) -> tuple[State, Timestep]:
        """Flies one env step of one swarm of N drones, `config.step_seconds` long.

        Args:
          key: consumed once.
          state: of the swarm, from `reset` or `step`.
          actions: [N] whole numbers, one command per drone; see `jaxqmix.types.ACTIONS`. An
            unknown one hovers; `checked_actions` says how to be told of it.
          params: the swarm's world.

        Returns:
          The next state, and its timestep: reward [], terminated [] and truncated [] bool, metrics
          (coverage [] from 0 to 1, what each term added to the reward, the fields of `Events`), and
          what `reset` gives. Stepping on after the end of an episode is defined and harmless;
          callers mask it.
        """
        return step(key, state, actions, params, self.config, self.parts)


def mission_env(config: RunConfig) -> UrbanGrid:
    """The world that a run's policy is for: episodes end when the mission is complete."""
    return UrbanGrid(config.env, config.domain)


def training_env(config: RunConfig) -> UrbanGrid:
    """The world of a run's training episodes, which end later than the mission."""
    return mission_env(config).in_training(config)


@dataclasses.dataclass(frozen=True, eq=False)
class FixedGrid(UrbanGrid):
    """A grid whose worlds are not drawn, but all the same; equal to itself alone, for arrays are
    no keys of programs."""

    params: Any = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def draw_params(self, key: jax.Array) -> EnvParams:
        """The chosen world, whatever the key."""
        return self.params
