"""Every setting of jaxqmix: frozen, typed, validated, and free of JAX.

Settings that decide array shapes are static and live in `EnvConfig`. Settings that may differ
between swarms without recompiling are given as ranges in `DomainConfig` and drawn per swarm.
Lengths are in metres, angles do not occur, and a row of the grid is y, a column x.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, final

from jaxqmix.documentation import documented

Range = tuple[float, float]
LONGEST_SHOWN = 200
"""Characters of a refused value that its error repeats."""


class ConfigError(ValueError):
    """A setting with a value that is not allowed; the message names all three, in one line."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text with control characters and such escaped, so that it stays one line."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """A value as an error shows it: in one line, shortened, free of control characters."""
    try:
        text = form(value)
    except Exception as error:  # Whole numbers of thousands of digits, for example.
        return f"({type(value).__name__} that cannot be shown: {type(error).__name__})"
    if len(text) > LONGEST_SHOWN:
        text = f"{text[: LONGEST_SHOWN - 25]}... ({len(text)} characters)"
    return printable(text)


class LostProcessError(RuntimeError):
    """Of the processes that train a run together another one is gone."""


class NotFiniteError(ArithmeticError):
    """Training came to numbers that are not finite; the message says what and when."""


def require(condition: bool, setting: str, value: Any, allowed: str) -> None:
    """Raises `ConfigError` naming the setting, its value and what is allowed."""
    if not condition:
        refuse(setting, value, allowed)


def refuse(setting: str, value: Any, allowed: str) -> NoReturn:
    """Raises `ConfigError` naming the setting, its value and what is allowed."""
    raise ConfigError(f"{shown(setting)} = {shown(value)} is not allowed: {allowed}")


@dataclass(frozen=True)
class Within:
    """The limits of a number, or of both numbers of a range: `Annotated[int, Within(1, 100)]`."""

    low: float
    high: float
    above: bool = False
    """Whether `low` itself is too low."""

    def check(self, setting: str, value: float | Range) -> None:
        """Raises `ConfigError` when a number, or an end of a range, is not finite or outside."""
        ends = value if isinstance(value, tuple) else (value,)
        for end in ends:
            # A whole number may be too large to be asked whether it is finite.
            finite = isinstance(end, int) or math.isfinite(end)
            require(finite, setting, end, "must be a finite number")
        ordered = ends[0] <= ends[-1]
        require(ordered, setting, value, "the first number must not exceed the second")
        low, high = (f"{end:,}" if abs(end) < 1e13 else f"{end:g}" for end in (self.low, self.high))
        allowed = f"must lie between {low} and {high}"
        if self.above:
            allowed = f"must be greater than {low} and at most {high}"
        inside = self.low < ends[0] if self.above else self.low <= ends[0]
        require(inside and ends[-1] <= self.high, setting, value, allowed)


SHARE = Within(0, 1)
LARGE = 1e38
"""Just fits into a float32; where physics or memory set no lower limit."""


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a config's fields, with their limits."""
    return typing.get_type_hints(kind, include_extras=True)


def checked(setting: str, value: Any, hint: Any) -> Any:
    """A value as its field keeps it: whole numbers of a field of type float become floats.

    An integer of numpy is no `int`: settings are kept as JSON.

    Args:
      setting: its name.
      value: to be checked.
      hint: the field's type; `Annotated` may hold its limits.

    Raises:
      ConfigError: on another type, or a number beyond the limits.
    """
    limits: Any = None
    if typing.get_origin(hint) is Annotated:
        hint, limits = typing.get_args(hint)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (option for option in options if option is not type(None))
    if origin is Literal:
        allowed = f"must be one of {options}"
        require(isinstance(value, str) and value in options, setting, value, allowed)
    elif hint is int or hint is float:
        allowed = "a whole number, of type int" if hint is int else "a number"
        right = isinstance(value, int if hint is int else int | float)
        right = right and not isinstance(value, bool)
        require(right, setting, shown(value, repr), f"must be {allowed}")
        limits.check(setting, value)
        return hint(value)
    elif hint == Range:
        # One number is a range of equal ends.
        ends = value if isinstance(value, tuple) else (value, value)
        right = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        allowed = "must be a pair of numbers, lowest and highest"
        require(len(ends) == 2 and right, setting, value, allowed)
        limits.check(setting, ends)
        return tuple(map(float, ends))
    elif hint == tuple[str, ...]:
        right = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
        require(right, setting, shown(value, repr), "must be a tuple of names")
    else:
        allowed = {bool: "True or False", str: "a text"}.get(hint, f"a {hint.__name__}")
        require(isinstance(value, hint), setting, shown(value, repr), f"must be {allowed}")
    return value


class Checked:
    """A config whose fields are checked against their types and limits when it is made."""

    section = ""

    def __post_init__(self) -> None:
        """Raises `ConfigError` on the first value that is not allowed."""
        prefix = f"{self.section}." if self.section else ""
        kind: Any = type(self)
        for name, hint in hints_of(kind).items():
            value = checked(f"{prefix}{name}", getattr(self, name), hint)
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raises `ConfigError` where fields do not fit each other."""


@documented
@dataclass(frozen=True)
class EnvConfig(Checked):
    """What decides the shapes of one swarm's world."""

    section = "env"

    drones: Annotated[int, Within(1, 100)] = 5
    """Number of drones in a swarm, 1 to 100."""
    city_width: Annotated[float, Within(0, 1e9, above=True)] = 1000.0
    """Extent of the city along x, metres."""
    city_length: Annotated[float, Within(0, 1e9, above=True)] = 1000.0
    """Extent of the city along y, metres."""
    cell_size: Annotated[float, Within(0, 1e6, above=True)] = 20.0
    """Side of a grid cell, metres; also the length of one horizontal move."""
    horizon: Annotated[int, Within(1, MAX_STEPS)] = 100
    """Time limit of an episode, env steps."""
    no_fly_zones: Annotated[int, Within(0, 16)] = 2
    """Number of no-fly cylinders in a generated city, 0 to 16."""
    sensing: Literal["footprint", "probabilistic"] = "footprint"
    """`footprint` sees every cell whose centre lies inside the footprint; `probabilistic` sees it
    with probability visibility x (1 - distance / radius) at each look."""
    coverage_target: Annotated[float, Within(0, 10, above=True)] = 0.95
    """Coverage that completes the mission and terminates the episode."""
    min_altitude: Annotated[float, Within(0, 500, above=True)] = 20.0
    """Lowest flying altitude, metres."""
    max_altitude: Annotated[float, Within(0, 500, above=True)] = 120.0
    """Highest flying altitude, metres."""
    climb: Annotated[float, Within(0, 500, above=True)] = 20.0
    """Altitude gained or lost by one vertical move, metres."""
    cruise_speed: Annotated[float, Within(0, 1e6, above=True)] = 15.0
    """Ground speed of a horizontal move, m/s; decides how many seconds a step lasts."""
    radio_range: Annotated[float, Within(0, 1e9)] = 2000.0
    """Distance within which teammates know of each other, metres."""
    neighbours: Annotated[int, Within(0, 99)] = 3
    """How many of the nearest teammates a drone observes one by one."""
    right_of_way: bool = True
    """Whether moves that could meet a teammate are unavailable; see
    `jaxqmix.env.dynamics.collision_free_actions`."""
    foresight: Annotated[int, Within(0, 10)] = 3
    """How many late commands in a row are foreseen: moves that they would repeat into a building or
    a teammate are unavailable."""
    zone_foresight: Annotated[int, Within(0, 10)] = 2
    """The same for no-fly zones. Each more makes violations rarer, about ten times with the usual
    delay, and the way around zones longer."""
    patch: Annotated[int, Within(1, 31)] = 5
    """Side of the egocentric obstacle patch, cells, odd."""
    blind_to: tuple[str, ...] = ()
    """Groups of the observation that are set to zero, for ablations; see
    `jaxqmix.env.observation.feature_slices`."""
    city: str | None = None
    """City file of `jaxqmix city`, or a folder of them of which each episode draws one; None
    generates cities. `jaxqmix.with_city` sets it with the sizes above."""
    city_checksum: str | None = None
    """Of what is flown over, so that a run goes on over nothing else."""

    def check(self) -> None:
        """Raises `ConfigError` where sizes do not fit each other."""
        smallest = min(self.city_width, self.city_length)
        require(
            self.cell_size <= smallest / 4,
            "env.cell_size",
            self.cell_size,
            f"must be at most a quarter of the city's shorter side ({smallest:g} m)",
        )
        for name in ("city_width", "city_length"):
            cells = getattr(self, name) / self.cell_size
            require(
                cells <= MOST_CELLS and abs(cells - round(cells)) < 1e-6,
                f"env.{name}",
                getattr(self, name),
                f"must be a multiple of env.cell_size = {self.cell_size:g}, and at most "
                f"{MOST_CELLS} cells",
            )
        require(
            self.min_altitude + self.climb <= self.max_altitude,
            "env.max_altitude",
            self.max_altitude,
            "must leave one climb above env.min_altitude and be at most 500",
        )
        require(self.patch % 2 == 1, "env.patch", self.patch, "must be odd, 1 to 31")
        # At most every second pad is taken, so that no-fly zones and buildings leave enough.
        pads = self.start_pads[0] * self.start_pads[1]
        require(
            2 * self.drones <= pads,
            "env.drones",
            self.drones,
            f"at most {pads // 2} drones fit into this city and start apart",
        )

    @property
    def rows(self) -> int:
        """Grid rows H (y)."""
        return round(self.city_length / self.cell_size)

    @property
    def columns(self) -> int:
        """Grid columns W (x)."""
        return round(self.city_width / self.cell_size)

    @property
    def step_seconds(self) -> float:
        """Seconds that one env step lasts."""
        return self.cell_size / self.cruise_speed

    @property
    def top_altitude(self) -> float:
        """The highest altitude that drones reach, by whole climbs from the lowest, metres."""
        climbs = math.floor((self.max_altitude - self.min_altitude + ALTITUDE_SLACK) / self.climb)
        return self.min_altitude + self.climb * climbs

    @property
    def max_footprint(self) -> float:
        """Largest footprint radius: full visibility at the highest altitude, metres."""
        return FOOTPRINT_RADIUS * (1 + self.max_altitude / FOOTPRINT_ALTITUDE)

    @property
    def start_spacing(self) -> int:
        """Cells between neighbouring start pads: twice the conflict distance at least."""
        return max(2, math.ceil(2 * CONFLICT_HORIZONTAL / self.cell_size))

    @property
    def start_pads(self) -> tuple[int, int]:
        """Rows and columns of the lattice of start pads."""
        return self.rows // self.start_spacing, self.columns // self.start_spacing


MOST_CELLS, MAX_STEPS = 10_000, 100_000
"""Cells of a city's side, and env steps of an episode: more would not fit into 32-bit numbers."""
MOST_COUNTED, MOST_EPISODES = 2**31 - 1, 10**8
"""Gradient steps of a run, for they are counted in int32; and episodes of full length, of which
many may end early."""
FOOTPRINT_RADIUS = 100.0
"""Footprint radius at the ground, metres."""
FOOTPRINT_ALTITUDE = 500.0
"""Altitude that doubles the footprint radius, metres."""
ALTITUDE_SLACK = 0.01
"""Metres beyond the altitude limits that are still inside: climbs add up in float32."""
CONFLICT_HORIZONTAL = 20.0
"""Drones closer than this horizontally, and vertically closer than the next, conflict, metres."""
CONFLICT_VERTICAL = 10.0
COVERAGE_SUCCESS = 0.90
"""Coverage at which a mission is judged."""


@documented
@dataclass(frozen=True)
class RewardConfig(Checked):
    """Weights of the reward terms.

    Conflicts, hits, violations and moves are counted as shares of an episode's drone steps.
    """

    section = "domain.reward"

    area: Annotated[float, Within(0, 1e6)] = 1.0
    """Seeing every coverable cell is worth this much."""
    bonus: Annotated[float, Within(0, 1e6)] = 0.1
    """Times the share of time left when 90 % coverage is first reached."""
    perimeter: Annotated[float, Within(0, 1e6)] = 0.35
    """Cost of the unseen area's perimeter (m) x 100 m / coverable area (m2), as it grows; closing a
    gap pays it back."""
    conflict: Annotated[float, Within(0, 1e6)] = 20.0
    """Cost of a drone conflict."""
    building_hit: Annotated[float, Within(0, 1e6)] = 3.0
    """Cost of striking a building."""
    violation: Annotated[float, Within(0, 1e6)] = 3.0
    """Cost of trying to enter a no-fly zone."""
    energy: Annotated[float, Within(0, 1e6)] = 0.02
    """Cost of a move; hovering is free."""


@documented
@dataclass(frozen=True)
class DomainConfig(Checked):
    """Ranges from which each swarm's world is drawn; equal ends, or one number, fix a value."""

    section = "domain"

    building_density: Annotated[Range, Within(0, 3)] = (0.7, 1.3)
    """Multiplies the share of built cells."""
    building_height: Annotated[Range, Within(0, 3)] = (0.8, 1.2)
    """Multiplies building heights."""
    wind_speed: Annotated[Range, Within(0, 30)] = (0.0, 10.0)
    """Steady wind, m/s; its direction is drawn uniformly."""
    turbulence: Annotated[Range, Within(0, 10)] = (0.0, 2.0)
    """Standard deviation of the random drift per step, metres."""
    visibility: Annotated[Range, Within(0.05, 1)] = (0.8, 1.0)
    """1 is clear air; the footprint radius shrinks with its square root."""
    packet_loss: Annotated[Range, Within(0, 1)] = (0.1, 0.1)
    """Probability that a command is lost; the drone hovers."""
    delay: Annotated[Range, Within(0, 1)] = (0.1, 0.1)
    """Probability that a command is late; the drone repeats its last move."""
    sensor_noise: Annotated[Range, Within(0, 50)] = (0.0, 2.0)
    """Standard deviation of observed positions, metres."""
    reward: RewardConfig = field(default_factory=RewardConfig)


@documented
@dataclass(frozen=True)
class LearnerConfig(Checked):
    """The agent network, the mixer, the targets and the optimiser."""

    section = "learner"

    network: Literal["mlp", "gru"] = "mlp"
    """Agent: a LayerNorm MLP, or the same with a recurrent layer."""
    hidden: Annotated[int, Within(1, 2**16)] = 128
    """Width of the agent's layers."""
    layers: Annotated[int, Within(1, 100)] = 2
    """Number of hidden layers of the agent."""
    mixer: Literal["qmix", "qplex", "vdn", "iql"] = "qmix"
    """How agent values become a team value; see `jaxqmix.learner.mixers`."""
    mixing_width: Annotated[int, Within(1, 2**16)] = 32
    """Width of the hidden layers of the mixers QMIX and QPLEX."""
    gamma: Annotated[float, SHARE] = 0.97
    """Discount per env step."""
    trace: Annotated[float, SHARE] = 0.7
    """Lambda of the lambda-returns."""
    reward_scale: Annotated[float, Within(0, LARGE, above=True)] = 1.0
    """Multiplies rewards x horizon, so that an even pace over the horizon is 1 per step."""
    learning_rate: Annotated[float, Within(0, LARGE, above=True)] = 1e-3
    """Peak learning rate (RAdam)."""
    learning_rate_hold: Annotated[float, SHARE] = 0.25
    """Share of the run before the learning rate starts to fall linearly."""
    learning_rate_end: Annotated[float, SHARE] = 0.03
    """Final learning rate as a share of the peak."""
    max_gradient_norm: Annotated[float, Within(0, LARGE, above=True)] = 5.0
    """Gradients are clipped to this global norm."""
    target_update: Annotated[float, Within(0, 1, above=True)] = 1.0
    """Polyak step of the target network per learner update; 1 copies it, so targets use the
    current weights."""
    double_q: bool = True
    """Choose the bootstrap action with the online network and value it with the target network;
    no effect while learner.target_update is 1, for both are then the same."""
    average_decay: Annotated[float, SHARE] = 0.99
    """Per-update decay of the EMA weights that evaluation uses; 0 uses the raw ones. The first
    updates are forgotten sooner."""
    epochs: Annotated[int, Within(1, 10**6)] = 1
    """Passes over the batch per learner update."""
    minibatches: Annotated[int, Within(1, 10**6)] = 8
    """Gradient steps per pass."""


LEARNER_NUMBERS = (
    *("gamma", "trace", "reward_scale", "learning_rate", "learning_rate_end"),
    *("max_gradient_norm", "average_decay"),
)
"""Settings of the learner that decide no shapes: they may be traced."""


@documented
@dataclass(frozen=True)
class ReplayConfig(Checked):
    """The replay store of mode `replay`; sizes count sequences of one rollout each."""

    section = "replay"

    capacity: Annotated[int, Within(1, 10**9)] = 4096
    """Stored sequences; the oldest are overwritten."""
    warmup: Annotated[int, Within(1, 10**9)] = 256
    """Sequences stored before the first update."""
    batch: Annotated[int, Within(1, 10**9)] = 64
    """Sequences drawn per learner update."""

    def check(self) -> None:
        """Raises `ConfigError` when the store never gets warm."""
        require(
            self.warmup <= self.capacity,
            "replay.warmup",
            self.warmup,
            f"must be at most replay.capacity = {self.capacity}",
        )


@documented
@dataclass(frozen=True)
class TrainingConfig(Checked):
    """The training loop."""

    section = "training"

    mode: Literal["online", "replay"] = "online"
    """`online` learns from the fresh rollout only; `replay` from a store of past rollouts."""
    env_steps: Annotated[int, Within(1, 10**13)] = 200_000
    """Budget in env steps of one swarm, summed over all swarms."""
    episodes: Annotated[int | None, Within(1, 10**9)] = None
    """Budget in episodes; replaces env_steps when given (episodes x horizon)."""
    swarms: Annotated[int, Within(1, 2**24)] = 64
    """Swarms simulated side by side."""
    rollout: Annotated[int, Within(1, MAX_STEPS)] = 10
    """Env steps of every swarm between learner updates."""
    coverage_target: Annotated[float, Within(0, 10, above=True)] = 1.0
    """Coverage that ends an episode of training; beyond env.coverage_target, so that the swarm
    also learns to see what is left in the end."""
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    """Seed of everything random in the run."""
    epsilon_start: Annotated[float, SHARE] = 1.0
    """Share of random actions at the start."""
    epsilon_end: Annotated[float, SHARE] = 0.05
    """Share of random actions after the decay."""
    epsilon_decay_steps: Annotated[int, Within(1, 10**13)] = 100_000
    """Env steps over which epsilon falls linearly."""
    epsilon_decay_per_episode: Annotated[float | None, SHARE] = None
    """Multiplies epsilon after each episode; replaces the linear decay when given."""


@documented
@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Greedy evaluation on cities that training never draws."""

    section = "evaluation"

    every_episodes: Annotated[int, Within(1, 10**12)] = 500
    """Episodes of training between two evaluations."""
    episodes: Annotated[int, Within(1, 10**6)] = 64
    """Held-out episodes of a periodic evaluation."""
    final_episodes: Annotated[int, Within(1, 10**6)] = 256
    """Held-out episodes of the final evaluation."""
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    """Which held-out cities; the same for every policy and run."""
    symmetric: bool = True
    """Act on the mean of the action values over all turned and mirrored views of the world."""
    max_collision_rate: Annotated[float, SHARE] = 0.10
    """Success criterion: collision_rate must be below this."""
    min_return: Annotated[float, Within(-LARGE, LARGE)] = 0.5
    """Success criterion: return must be above this. The mission reward, which leaves out the
    perimeter's cost, is never below the return, and so it is above this too."""
    min_coverage: Annotated[float, SHARE] = 0.90
    """Success criterion: coverage must reach this."""


@documented
@dataclass(frozen=True)
class CheckpointConfig(Checked):
    """Which checkpoints a run keeps."""

    section = "checkpoint"

    every_episodes: Annotated[int, Within(1, 10**12)] = 100
    """Episodes between two `latest` checkpoints."""
    keep: Annotated[int, Within(1, 1000)] = 2
    """How many `latest` checkpoints to keep."""


@final
@documented
@dataclass(frozen=True)
class RunConfig(Checked):
    """A whole run."""

    preset: str = "quick"
    """Name of the preset that these settings began from."""
    env: EnvConfig = field(default_factory=EnvConfig)
    domain: DomainConfig = field(default_factory=DomainConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    scale: Literal["cpu", "gpu"] = "cpu"
    """The device whose settings of size these began from; see `jaxqmix.presets.SCALES`."""
    world: str | None = None
    """Name of a world of one's own, which `jaxqmix.train(..., env=...)` writes; of the settings of
    `env` only drones and horizon count then. None: the city that they say."""

    def check(self) -> None:
        """Checks what concerns several sections; raises `ConfigError`."""
        training, learner = self.training, self.learner
        fits = 0 < len(self.preset) <= 60 and self.preset.isprintable()
        require(fits, "preset", self.preset, "must be a name of 1 to 60 printable characters")
        self._check_budget()
        require(
            training.rollout <= self.env.horizon,
            "training.rollout",
            training.rollout,
            f"must be at most env.horizon = {self.env.horizon}: episodes begin between rollouts",
        )
        online = training.mode == "online"
        sequences = training.swarms if online else self.replay.batch
        require(
            sequences % learner.minibatches == 0,
            "training.swarms" if online else "replay.batch",
            sequences,
            f"must be a multiple of learner.minibatches = {learner.minibatches}",
        )
        require(
            online or self.replay.capacity >= training.swarms,
            "replay.capacity",
            self.replay.capacity,
            f"must hold one rollout of training.swarms = {training.swarms}",
        )
        flown = self.iterations * training.swarms
        require(
            online or self.replay.warmup <= flown,
            "replay.warmup",
            self.replay.warmup,
            f"must be at most the {flown} sequences that the run flies",
        )

    def replace(self, **settings: Any) -> RunConfig:
        """A copy with some settings changed, by their names on the command line::

            config.replace(**{"env.drones": 3, "domain.packet_loss": 0.3})

        Raises:
          ConfigError: on an unknown setting, or a value that is not allowed.
        """
        return replaced(self, settings)

    def _check_budget(self) -> None:
        """Raises `ConfigError` on a budget that is too small, or too large for its counters."""
        training, learner = self.training, self.learner
        by_steps = training.episodes is None
        budget = (
            "training.env_steps" if by_steps else "training.episodes",
            training.env_steps if by_steps else training.episodes,
        )
        require(
            self.budget >= self.iteration_steps,
            *budget,
            "must pay for one rollout of all swarms: training.swarms x training.rollout = "
            f"{self.iteration_steps} env steps",
        )
        calls = self.iterations * learner.epochs * learner.minibatches
        require(
            calls <= MOST_COUNTED,
            *budget,
            f"it makes {calls:,} gradient steps, and {MOST_COUNTED:,} can be counted; raise "
            "training.swarms or training.rollout",
        )
        most = MOST_EPISODES * self.env.horizon
        require(
            self.budget <= most,
            *budget,
            f"must be at most {most:,} env steps, {MOST_EPISODES:,} episodes: they are counted in "
            "32 bits",
        )

    @property
    def iteration_steps(self) -> int:
        """Env steps of one rollout of all swarms."""
        return self.training.swarms * self.training.rollout

    @property
    def budget(self) -> int:
        """Env steps to train for."""
        if self.training.episodes is not None:
            return self.training.episodes * self.env.horizon
        return self.training.env_steps

    @property
    def iterations(self) -> int:
        """Iterations in the budget: each is a rollout of all swarms and one learner update."""
        return self.budget // self.iteration_steps


def setting_names(config: Any, prefix: str = "") -> list[str]:
    """Every setting of a config, such as `env.drones`."""
    names = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        section = dataclasses.is_dataclass(value)
        name = f"{prefix}{item.name}"
        names += setting_names(value, f"{name}.") if section else [name]
    return names


def similar_setting(name: str, known: list[str]) -> str | None:
    """The setting that a wrong name most likely meant, if any."""
    same_end = [each for each in known if each.split(".")[-1] == name.split(".")[-1]]
    return next(iter(same_end or difflib.get_close_matches(name, known, n=1)), None)


def replaced(config: Any, settings: dict[str, Any], prefix: str = "") -> Any:
    """A config with settings changed by dotted names, those of a section all at once.

    Raises:
      ConfigError: on an unknown setting, or a value that is not allowed.
    """
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, rest = name.replace("-", "_").partition(".")
        part = getattr(config, section, None)
        if rest and dataclasses.is_dataclass(part):
            changes.setdefault(section, {})[rest] = value
            continue
        known = setting_names(config)
        meant = similar_setting(name, known)
        hint = f"did you mean {prefix}{meant}?" if meant else "there is no such setting"
        hint = f"{prefix}{section} is a single setting" if rest and section in known else hint
        hint = "it is a section, and takes settings one by one" if not rest and part else hint
        require(name.replace("-", "_") in known, f"{prefix}{name}", value, hint)
        changes[section] = tuple(value) if isinstance(value, list) else value
    for section, value in changes.items():
        if dataclasses.is_dataclass(part := getattr(config, section)):
            changes[section] = replaced(part, value, f"{prefix}{section}.")
    return dataclasses.replace(config, **changes)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any], kind: type = RunConfig, prefix: str = "") -> Any:
    """Rebuilds a config from `to_dict`'s output; raises `ConfigError` on an unknown setting."""
    section = prefix.removesuffix(".") or "config"
    require(isinstance(data, Mapping), section, data, "must be a mapping of settings to values")
    hints, values = hints_of(kind), {}
    for name, value in data.items():
        require(name in hints, f"{prefix}{name}", value, f"known settings are {sorted(hints)}")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = from_dict(value, hints[name], f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
