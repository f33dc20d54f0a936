"""Settings of a federation: frozen, typed, validated, and free of JAX."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxqmix.config import ConfigError, require
from jaxqmix.documentation import documented

Rule = Literal[
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedasync",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
]
RULES: tuple[str, ...] = get_args(Rule)
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")
"""Rules that bear some hostile sites; they do not look at weights."""
SERVER_RATE = {"fedavgm": 0.5, "fedadam": 0.01}
"""Steps of the server where none is given; 1 for the other rules."""
Attack = Literal["sign-flip", "scale", "nan", "weight", "noise", "copy"]
Codec = Literal["none", "int8", "top-k", "low-rank"]
Pattern = Literal["random", "periodic", "burst"]


@documented
@dataclass(frozen=True)
class FederationConfig:
    """How sites train together."""

    sites: int = 10
    """How many sites there are."""
    per_round: int = 5
    """How many of them are chosen for a round."""
    minimum: int = 3
    """Updates that a round needs, robust rules perhaps more (see `hostile`); with fewer, the global
    policy stays as it is."""
    rounds: int = 40
    """Rounds of local training and aggregation."""
    local_env_steps: int = 50_000
    """Env steps that a site flies in a round, of one swarm, summed over its swarms."""
    aggregate: Rule = "fedavg"
    """How updates become the next global policy."""
    population: str = "sites-mixed"
    """`sites-alike`, `sites-mixed`, or a JSON file that lists the sites."""
    heterogeneity: float | None = None
    """How much drawn sites differ, 0 to 1; 0 for sites-alike and 1 for sites-mixed unless given."""
    concentration: float = 0.5
    """Of the Dirichlet mixtures of city types, weathers and links; small: each site has one."""
    drones: tuple[int, ...] = ()
    """Sizes of the sites' swarms, in turn; empty: the preset's. Where they differ, mixers stay."""
    mixer: Literal["shared", "local"] = "shared"
    """Whether the mixer is aggregated too, or stays at its site."""
    server_rate: float | None = None
    """Step of the server along the aggregated update; the rule's own unless given."""
    server_momentum: float = 0.5
    """Of fedavgm."""
    proximal: float = 0.01
    """Mu of fedprox: pulls local weights to the global ones."""
    staleness: int = 5
    """Of fedasync: sites begin from a global policy up to so many rounds old."""
    alpha: float = 0.9
    """Of fedasync: share of a fresh update's weights in the new global ones."""
    hostile: int = 1
    """Hostile updates in a round that the robust rules must bear."""
    weight_cap: float = 3.0
    """Largest weight of an update, in medians of those of the round."""
    norm_cap: float = 3.0
    """Updates are clipped to so many medians of the round's norms."""
    dropout: float = 0.0
    """Share of chosen sites that cannot be reached."""
    dropout_pattern: Pattern = "random"
    """When sites are away: at random, in turns, or for several rounds on end."""
    compression: Codec = "none"
    """What sites do to their updates before they send them."""
    keep_share: float = 0.1
    """Of top-k: the share of numbers that is sent."""
    rank: int = 8
    """Of low-rank."""
    noise: float = 0.0
    """Standard deviation of the noise of differential privacy, in clipping norms; 0: no privacy."""
    clip: float = 1.0
    """First clipping norm of differential privacy; it then follows the updates' median norm."""
    delta: float = 1e-5
    """Of the (epsilon, delta) that is spent."""
    epsilon: float | None = None
    """Most epsilon that a run may spend; unlimited unless given."""
    attackers: int = 0
    """Sites that attack, to try the rules: the last ones."""
    attack: Attack = "sign-flip"
    """What they send."""
    evaluate_every: int = 5
    """Rounds between evaluations of the global policy."""
    checkpoint_every: int = 10
    """Rounds between checkpoints."""
    episodes: int = 16
    """Held-out episodes of each site in an evaluation."""
    final_episodes: int = 64
    """Held-out episodes of each site in the final evaluation."""
    strangers: int = 4
    """Sites drawn like the others on whose cities the global policy is evaluated, but not
    trained."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` on the first impossible value."""
        check_types(self)
        for name in ("sites", "per_round", "minimum", "rounds", "local_env_steps", "rank",
                     "evaluate_every", "checkpoint_every", "episodes",
                     "final_episodes"):  # fmt: skip
            at_least(name, getattr(self, name), 1)
        for name in ("strangers", "staleness", "hostile", "attackers"):
            at_least(name, getattr(self, name), 0)
        for name in ("dropout", "alpha", "keep_share", "server_momentum"):
            probability(name, getattr(self, name))
        choice("aggregate", self.aggregate, RULES)
        choice("compression", self.compression, get_args(Codec))
        choice("dropout_pattern", self.dropout_pattern, get_args(Pattern))
        choice("attack", self.attack, get_args(Attack))
        choice("mixer", self.mixer, ("shared", "local"))
        require(
            self.per_round <= self.sites,
            "per_round",
            self.per_round,
            f"must be at most sites = {self.sites}",
        )
        require(
            self.minimum <= self.per_round,
            "minimum",
            self.minimum,
            f"must be at most per_round = {self.per_round}",
        )
        require(
            self.attackers <= self.sites,
            "attackers",
            self.attackers,
            f"must be at most sites = {self.sites}",
        )
        if self.heterogeneity is not None:
            probability("heterogeneity", self.heterogeneity)
        for name in ("concentration", "proximal", "weight_cap", "norm_cap", "clip", "keep_share",
                     "alpha"):  # fmt: skip
            positive(name, getattr(self, name))
        for name in ("server_rate", "epsilon"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        require(0 < self.delta < 1, "delta", self.delta, "must lie between 0 and 1")
        require(
            math.isfinite(self.noise) and self.noise >= 0,
            "noise",
            self.noise,
            "must be at least 0",
        )
        self._check_rule()

    def _check_rule(self) -> None:
        """What the rule and privacy ask of the others."""
        if self.aggregate in ROBUST:
            require(
                self.per_round >= fewest(self.aggregate, self.hostile),
                "hostile",
                self.hostile,
                f"{self.aggregate} needs at least {fewest(self.aggregate, self.hostile)} updates "
                f"to bear so many, and per_round = {self.per_round}",
            )
        require(
            not self.noise or self.aggregate in ("fedavg", "fedprox", "fedavgm", "fedadam"),
            "noise",
            self.noise,
            f"differential privacy needs a mean of all updates, and aggregate = {self.aggregate}",
        )

    @property
    def rate(self) -> float:
        """Step of the server along the aggregated update."""
        if self.server_rate is not None:
            return self.server_rate
        return SERVER_RATE.get(self.aggregate, 1.0)


def fewest(rule: str, hostile: Any) -> Any:
    """Updates that a robust rule needs to bear so many hostile ones among them.

    Krum: n >= 2f + 3 (Blanchard et al. 2017, proposition 4.2); the others need a majority.
    """
    return 2 * hostile + (3 if "krum" in rule else 1)


def check_types(config: FederationConfig) -> None:
    """Raises `ConfigError` on a number of another type than its field's."""
    kinds = {"int": (int,), "float": (int, float)}
    for item in dataclasses.fields(config):
        value, kind = getattr(config, item.name), item.type.removesuffix(" | None")
        if kind in kinds and not (value is None and kind != item.type):
            right = isinstance(value, kinds[kind]) and not isinstance(value, bool)
            said = "a whole number" if kind == "int" else "a number"
            require(right, item.name, repr(value), f"must be {said}")
    for count in config.drones:
        require(isinstance(count, int) and count >= 1, "drones", count, "must be at least 1 each")


def at_least(name: str, value: float, minimum: float) -> None:
    """Raises `ConfigError` on a smaller value."""
    require(value >= minimum, name, value, f"must be at least {minimum}")


def positive(name: str, value: float) -> None:
    """Raises `ConfigError` unless a value is finite and greater than 0."""
    require(math.isfinite(value) and value > 0, name, value, "must be greater than 0")


def probability(name: str, value: float) -> None:
    """Raises `ConfigError` on a value outside of 0 to 1."""
    require(0 <= value <= 1, name, value, "must lie between 0 and 1")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises `ConfigError` on an unknown word."""
    require(value in allowed, name, value, f"must be one of {', '.join(allowed)}")


def from_dict(data: dict[str, Any]) -> FederationConfig:
    """Rebuilds settings from `dataclasses.asdict`; raises `ConfigError` on an unknown one."""
    known = {item.name for item in dataclasses.fields(FederationConfig)}
    if unknown := set(data) - known:
        raise ConfigError(f"setting {sorted(unknown)[0]} is not known: of another version?")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return FederationConfig(**values)
