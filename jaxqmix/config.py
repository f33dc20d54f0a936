"""Every setting of jaxqmix: frozen, typed, validated, and free of JAX.

Settings that decide array shapes are static and live in `EnvConfig`. Settings that may differ
between swarms without recompiling are given as ranges in `DomainConfig` and drawn per swarm.
Lengths are in metres, angles do not occur, and a row of the grid is y, a column x.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxqmix.documentation import documented

Range = tuple[float, float]


class ConfigError(ValueError):
    """A setting with a value that is not allowed; the message names all three."""


def require(condition: bool, setting: str, value: Any, allowed: str) -> None:
    """Raises `ConfigError` naming the setting, its value and what is allowed."""
    if not condition:
        raise ConfigError(f"{setting} = {value} is not allowed: {allowed}")


def _finite(setting: str, value: float) -> None:
    require(math.isfinite(value), setting, value, "must be a finite number")


NUMBERS = {"int": (int, "a whole number, of type int"), "float": (int | float, "a number")}
"""Types of fields that hold numbers: what their values must be, and how that is said."""


def _check_types(section: str, settings: Any) -> None:
    """Raises `ConfigError` on a number of another type than its field's.

    An integer of numpy is no `int`: settings are kept as JSON.
    """
    for item in dataclasses.fields(settings):
        value, kind = getattr(settings, item.name), item.type.removesuffix(" | None")
        if kind in NUMBERS and not (value is None and kind != item.type):
            types, allowed = NUMBERS[kind]
            right = isinstance(value, types) and not isinstance(value, bool)
            require(right, f"{section}.{item.name}", repr(value), f"must be {allowed}")


def _at_least(setting: str, value: float, minimum: float) -> None:
    _finite(setting, value)
    require(value >= minimum, setting, value, f"must be at least {minimum}")


def _positive(setting: str, value: float) -> None:
    _finite(setting, value)
    require(value > 0, setting, value, "must be greater than 0")


def _probability(setting: str, value: float) -> None:
    _finite(setting, value)
    require(0 <= value <= 1, setting, value, "must lie between 0 and 1")


def _range(setting: str, value: Range, low: float, high: float) -> None:
    pair = isinstance(value, tuple) and len(value) == 2
    pair = pair and all(isinstance(number, int | float) for number in value)
    require(pair, setting, value, "must be a pair of numbers, lowest and highest")
    for number in value:
        _finite(setting, number)
    require(value[0] <= value[1], setting, value, "the first number must not exceed the second")
    require(
        low <= value[0] and value[1] <= high, setting, value, f"must lie between {low} and {high}"
    )


@documented
@dataclass(frozen=True)
class EnvConfig:
    """What decides the shapes of one swarm's world."""

    drones: int = 5
    """Number of drones in a swarm, 1 to 100."""
    city_width: float = 1000.0
    """Extent of the city along x, metres."""
    city_length: float = 1000.0
    """Extent of the city along y, metres."""
    cell_size: float = 20.0
    """Side of a grid cell, metres; also the length of one horizontal move."""
    horizon: int = 100
    """Time limit of an episode, env steps."""
    no_fly_zones: int = 2
    """Number of no-fly cylinders in a generated city, 0 to 16."""
    sensing: Literal["footprint", "probabilistic"] = "footprint"
    """`footprint` sees every cell whose centre lies inside the footprint; `probabilistic` sees it
    with probability visibility x (1 - distance / radius) at each look."""
    coverage_target: float = 0.95
    """Coverage that completes the mission and terminates the episode."""
    min_altitude: float = 20.0
    """Lowest flying altitude, metres."""
    max_altitude: float = 120.0
    """Highest flying altitude, metres."""
    climb: float = 20.0
    """Altitude gained or lost by one vertical move, metres."""
    cruise_speed: float = 15.0
    """Ground speed of a horizontal move, m/s; decides how many seconds a step lasts."""
    radio_range: float = 2000.0
    """Distance within which teammates know of each other, metres."""
    neighbours: int = 3
    """How many of the nearest teammates a drone observes one by one."""
    right_of_way: bool = True
    """Whether moves that could meet a teammate are unavailable; see
    `jaxqmix.env.dynamics.keeps_clear`."""
    patch: int = 5
    """Side of the egocentric obstacle patch, cells, odd."""
    blind_to: tuple[str, ...] = ()
    """Groups of the observation that are set to zero, for ablations; see
    `jaxqmix.env.observation.groups`."""
    city: str | None = None
    """City file of `jaxqmix city`, or a folder of them of which each episode draws one; None
    generates cities. `jaxqmix.with_city` sets it with the sizes above."""
    city_checksum: str | None = None
    """Of what is flown over, so that a run goes on over nothing else."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` on the first impossible value."""
        _check_types("env", self)
        require(1 <= self.drones <= 100, "env.drones", self.drones, "must lie between 1 and 100")
        for name in ("city_width", "city_length", "cell_size", "climb", "cruise_speed"):
            _positive(f"env.{name}", getattr(self, name))
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
            1 <= self.horizon <= LONGEST,
            "env.horizon",
            self.horizon,
            f"must lie between 1 and {LONGEST}",
        )
        require(
            0 <= self.no_fly_zones <= 16,
            "env.no_fly_zones",
            self.no_fly_zones,
            "must lie between 0 and 16",
        )
        sensing = ("footprint", "probabilistic")
        require(self.sensing in sensing, "env.sensing", self.sensing, f"must be one of {sensing}")
        _positive("env.coverage_target", self.coverage_target)
        _positive("env.min_altitude", self.min_altitude)
        require(
            self.min_altitude + self.climb <= self.max_altitude <= 500,
            "env.max_altitude",
            self.max_altitude,
            "must leave one climb above env.min_altitude and be at most 500",
        )
        _at_least("env.radio_range", self.radio_range, 0)
        _at_least("env.neighbours", self.neighbours, 0)
        require(
            self.patch % 2 == 1 and 1 <= self.patch <= 31,
            "env.patch",
            self.patch,
            "must be odd, 1 to 31",
        )
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


MOST_CELLS, LONGEST = 10_000, 100_000
"""Cells of a city's side, and env steps of an episode: more would not fit into 32-bit numbers."""
FOOTPRINT_RADIUS = 100.0
"""Footprint radius at the ground, metres."""
FOOTPRINT_ALTITUDE = 500.0
"""Altitude that doubles the footprint radius, metres."""
CONFLICT_HORIZONTAL = 20.0
"""Drones closer than this horizontally, and vertically closer than the next, conflict, metres."""
CONFLICT_VERTICAL = 10.0
COVERAGE_SUCCESS = 0.90
"""Coverage at which a mission is judged."""


@documented
@dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward terms.

    Conflicts, hits, violations and moves are counted as shares of an episode's drone steps.
    """

    area: float = 1.0
    """Seeing every coverable cell is worth this much."""
    bonus: float = 0.1
    """Times the share of time left when 90 % coverage is first reached."""
    perimeter: float = 0.35
    """Cost of the unseen area's perimeter (m) x 100 m / coverable area (m2), as it grows; closing a
    gap pays it back."""
    conflict: float = 20.0
    """Cost of a drone conflict."""
    building_hit: float = 3.0
    """Cost of striking a building."""
    violation: float = 3.0
    """Cost of trying to enter a no-fly zone."""
    energy: float = 0.02
    """Cost of a move; hovering is free."""

    def __post_init__(self) -> None:
        _check_types("domain.reward", self)
        for item in dataclasses.fields(self):
            _at_least(f"domain.reward.{item.name}", getattr(self, item.name), 0.0)


@documented
@dataclass(frozen=True)
class DomainConfig:
    """Ranges from which each swarm's world is drawn; equal ends, or one number, fix a value."""

    building_density: Range = (0.7, 1.3)
    """Multiplies the share of built cells."""
    building_height: Range = (0.8, 1.2)
    """Multiplies building heights."""
    wind_speed: Range = (0.0, 10.0)
    """Steady wind, m/s; its direction is drawn uniformly."""
    turbulence: Range = (0.0, 2.0)
    """Standard deviation of the random drift per step, metres."""
    visibility: Range = (0.8, 1.0)
    """1 is clear air; the footprint radius shrinks with its square root."""
    packet_loss: Range = (0.1, 0.1)
    """Probability that a command is lost; the drone hovers."""
    delay: Range = (0.1, 0.1)
    """Probability that a command is late; the drone repeats its last move."""
    sensor_noise: Range = (0.0, 2.0)
    """Standard deviation of observed positions, metres."""
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if item.type == "Range" and number:
                # One number is a range of equal ends.
                object.__setattr__(self, item.name, (value, value))
        _range("domain.building_density", self.building_density, 0.0, 3.0)
        _range("domain.building_height", self.building_height, 0.0, 3.0)
        _range("domain.wind_speed", self.wind_speed, 0.0, 30.0)
        _range("domain.turbulence", self.turbulence, 0.0, 10.0)
        _range("domain.visibility", self.visibility, 0.05, 1.0)
        _range("domain.packet_loss", self.packet_loss, 0.0, 1.0)
        _range("domain.delay", self.delay, 0.0, 1.0)
        _range("domain.sensor_noise", self.sensor_noise, 0.0, 50.0)


@documented
@dataclass(frozen=True)
class LearnerConfig:
    """The agent network, the mixer, the targets and the optimiser."""

    network: Literal["mlp", "gru"] = "mlp"
    """Agent: a LayerNorm MLP, or the same with a recurrent layer."""
    hidden: int = 128
    """Width of the agent's layers."""
    layers: int = 2
    """Number of hidden layers of the agent."""
    mixer: Literal["qmix", "vdn", "iql"] = "qmix"
    """How agent values become a team value."""
    mixing_width: int = 32
    """Width of the QMIX mixing layer."""
    gamma: float = 0.97
    """Discount per env step."""
    trace: float = 0.7
    """Lambda of the lambda-returns."""
    reward_scale: float = 1.0
    """Multiplies rewards x horizon, so that an even pace over the horizon is 1 per step."""
    learning_rate: float = 1e-3
    """Peak learning rate (RAdam)."""
    learning_rate_hold: float = 0.25
    """Share of the run before the learning rate starts to fall linearly."""
    learning_rate_end: float = 0.03
    """Final learning rate as a share of the peak."""
    max_gradient_norm: float = 5.0
    """Gradients are clipped to this global norm."""
    target_update: float = 1.0
    """Polyak step of the target network per learner call; 1 copies it, so targets use the
    current weights."""
    double_q: bool = True
    """Choose the bootstrap action with the online network and value it with the target network."""
    average_decay: float = 0.99
    """Per-call decay of the averaged weights that evaluation uses; 0 uses the raw ones. The first
    calls are forgotten sooner."""
    epochs: int = 1
    """Passes over the batch per learner call."""
    minibatches: int = 8
    """Gradient steps per pass."""

    def __post_init__(self) -> None:
        _check_types("learner", self)
        for name, allowed in (("network", ("mlp", "gru")), ("mixer", ("qmix", "vdn", "iql"))):
            value = getattr(self, name)
            require(value in allowed, f"learner.{name}", value, f"must be one of {allowed}")
        for name in ("hidden", "layers", "mixing_width", "epochs", "minibatches"):
            _at_least(f"learner.{name}", getattr(self, name), 1)
        for name in ("learning_rate", "reward_scale", "max_gradient_norm", "target_update"):
            _positive(f"learner.{name}", getattr(self, name))
        for name in (
            "gamma",
            "trace",
            "learning_rate_hold",
            "learning_rate_end",
            "target_update",
            "average_decay",
        ):
            _probability(f"learner.{name}", getattr(self, name))


@documented
@dataclass(frozen=True)
class ReplayConfig:
    """The replay store of mode `replay`; sizes count sequences of one rollout each."""

    capacity: int = 4096
    """Stored sequences; the oldest are overwritten."""
    warmup: int = 256
    """Sequences stored before the first update."""
    batch: int = 64
    """Sequences drawn per learner call."""

    def __post_init__(self) -> None:
        _check_types("replay", self)
        for name in ("capacity", "warmup", "batch"):
            _at_least(f"replay.{name}", getattr(self, name), 1)
        require(
            self.warmup <= self.capacity,
            "replay.warmup",
            self.warmup,
            f"must be at most replay.capacity = {self.capacity}",
        )


@documented
@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    mode: Literal["online", "replay"] = "online"
    """`online` learns from the fresh rollout only; `replay` from a store of past rollouts."""
    env_steps: int = 500_000
    """Budget in env steps of one swarm, summed over all swarms."""
    episodes: int | None = None
    """Budget in episodes; replaces env_steps when given (episodes x horizon)."""
    swarms: int = 64
    """Swarms simulated side by side."""
    rollout: int = 10
    """Env steps of every swarm between learner calls."""
    coverage_target: float = 1.0
    """Coverage that ends an episode of training; beyond env.coverage_target, so that the swarm
    also learns to see what is left in the end."""
    seed: int = 0
    """Seed of everything random in the run."""
    epsilon_start: float = 1.0
    """Share of random actions at the start."""
    epsilon_end: float = 0.05
    """Share of random actions after the decay."""
    epsilon_decay_steps: int = 100_000
    """Env steps over which epsilon falls linearly."""
    epsilon_decay_per_episode: float | None = None
    """Multiplies epsilon after each episode; replaces the linear decay when given."""

    def __post_init__(self) -> None:
        _check_types("training", self)
        modes = ("online", "replay")
        require(self.mode in modes, "training.mode", self.mode, f"must be one of {modes}")
        for name in ("env_steps", "swarms", "rollout", "epsilon_decay_steps"):
            _at_least(f"training.{name}", getattr(self, name), 1)
        _positive("training.coverage_target", self.coverage_target)
        if self.episodes is not None:
            _at_least("training.episodes", self.episodes, 1)
        require(
            0 <= self.seed < 2**32, "training.seed", self.seed, "must lie between 0 and 2^32 - 1"
        )
        _probability("training.epsilon_start", self.epsilon_start)
        _probability("training.epsilon_end", self.epsilon_end)
        if self.epsilon_decay_per_episode is not None:
            _probability("training.epsilon_decay_per_episode", self.epsilon_decay_per_episode)


@documented
@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy evaluation on cities that training never draws."""

    every_episodes: int = 500
    """Episodes of training between two evaluations."""
    episodes: int = 64
    """Held-out episodes of a periodic evaluation."""
    final_episodes: int = 256
    """Held-out episodes of the final evaluation."""
    seed: int = 0
    """Which held-out cities; the same for every policy and run."""
    symmetric: bool = True
    """Act on the mean of the action values over all turned and mirrored views of the world."""
    max_collision_rate: float = 0.10
    """Success criterion: collision_rate must be below this."""
    min_return: float = 0.5
    """Success criterion: return must be above this."""
    min_coverage: float = 0.90
    """Success criterion: coverage must reach this."""

    def __post_init__(self) -> None:
        _check_types("evaluation", self)
        for name in ("every_episodes", "episodes", "final_episodes"):
            _at_least(f"evaluation.{name}", getattr(self, name), 1)
        require(
            0 <= self.seed < 2**32, "evaluation.seed", self.seed, "must lie between 0 and 2^32 - 1"
        )
        _probability("evaluation.max_collision_rate", self.max_collision_rate)
        _finite("evaluation.min_return", self.min_return)
        _probability("evaluation.min_coverage", self.min_coverage)


@documented
@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints a run keeps."""

    every_episodes: int = 100
    """Episodes between two `latest` checkpoints."""
    keep: int = 2
    """How many `latest` checkpoints to keep."""

    def __post_init__(self) -> None:
        _check_types("checkpoint", self)
        _at_least("checkpoint.every_episodes", self.every_episodes, 1)
        _at_least("checkpoint.keep", self.keep, 1)


@documented
@dataclass(frozen=True)
class RunConfig:
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

    def __post_init__(self) -> None:
        """Checks what concerns several sections; raises `ConfigError`."""
        training, learner = self.training, self.learner
        require(
            self.budget >= self.chunk_steps,
            "training.env_steps" if training.episodes is None else "training.episodes",
            training.env_steps if training.episodes is None else training.episodes,
            "must pay for one rollout of all swarms: training.swarms x training.rollout = "
            f"{self.chunk_steps} env steps",
        )
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
        flown = self.chunks * training.swarms
        require(
            online or self.replay.warmup <= flown,
            "replay.warmup",
            self.replay.warmup,
            f"must be at most the {flown} sequences that the run flies",
        )

    def replace(self, **settings: Any) -> RunConfig:
        """A copy with some settings changed, by their names on the command line:

            config.replace(**{"env.drones": 3, "domain.packet_loss": 0.3})

        Raises:
          ConfigError: on an unknown setting, or a value that is not allowed.
        """
        return replaced(self, settings)

    @property
    def chunk_steps(self) -> int:
        """Env steps of one rollout of all swarms."""
        return self.training.swarms * self.training.rollout

    @property
    def budget(self) -> int:
        """Env steps to train for."""
        if self.training.episodes is not None:
            return self.training.episodes * self.env.horizon
        return self.training.env_steps

    @property
    def chunks(self) -> int:
        """Rollouts of all swarms, each with one learner call, in the budget."""
        return self.budget // self.chunk_steps


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


def from_dict(data: dict[str, Any], kind: type = RunConfig, prefix: str = "") -> Any:
    """Rebuilds a config from `to_dict`'s output; raises `ConfigError` on an unknown setting."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    sections = {"env": EnvConfig, "domain": DomainConfig, "learner": LearnerConfig}
    sections |= {"replay": ReplayConfig, "training": TrainingConfig, "reward": RewardConfig}
    sections |= {"evaluation": EvaluationConfig, "checkpoint": CheckpointConfig}
    values = {}
    for name, value in data.items():
        require(name in known, f"{prefix}{name}", value, f"known settings are {sorted(known)}")
        if name in sections:
            values[name] = from_dict(value, sections[name], f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
