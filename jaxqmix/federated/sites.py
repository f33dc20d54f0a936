"""Sites: where swarms train without sharing their flights, and how their worlds differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError, DomainConfig, RunConfig, from_dict, refuse, require
from jaxqmix.federated.config import FederationConfig

POPULATIONS = {"sites-alike": 0.0, "sites-mixed": 1.0}
"""Heterogeneity by the name of a population."""
CITIES = {
    "suburb": {"building_density": (0.2, 0.6), "building_height": (0.4, 0.7)},
    "town": {"building_density": (0.7, 1.3), "building_height": (0.8, 1.2)},
    "old town": {"building_density": (1.8, 2.4), "building_height": (0.3, 0.6)},
    "high-rise": {"building_density": (1.2, 1.8), "building_height": (1.5, 2.5)},
}
WEATHERS = {
    "calm": {"wind_speed": (0.0, 2.0), "turbulence": (0.0, 0.5), "visibility": (0.95, 1.0)},
    "breeze": {"wind_speed": (0.0, 10.0), "turbulence": (0.0, 2.0), "visibility": (0.8, 1.0)},
    "storm": {"wind_speed": (10.0, 20.0), "turbulence": (2.0, 5.0), "visibility": (0.7, 0.9)},
    "fog": {"wind_speed": (0.0, 3.0), "turbulence": (0.0, 1.0), "visibility": (0.4, 0.6)},
}
LINKS = {
    "clear": {"packet_loss": (0.0, 0.02), "delay": (0.0, 0.02), "sensor_noise": (0.0, 0.5)},
    "usual": {"packet_loss": (0.1, 0.1), "delay": (0.1, 0.1), "sensor_noise": (0.0, 2.0)},
    "canyon": {"packet_loss": (0.2, 0.3), "delay": (0.2, 0.3), "sensor_noise": (2.0, 6.0)},
}
LEAST_WORK = 0.5
"""Share of a round that the least busy of very different sites flies."""


@dataclass(frozen=True)
class Site:
    """Where a swarm is trained."""

    name: str
    drones: int
    """Of its swarm."""
    work: float
    """Share of a round's env steps that it flies, above 0 and at most 1."""
    domain: DomainConfig
    """Ranges from which its worlds are drawn."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` on an impossible value."""
        allowed = self.name and not set(self.name) & set('/\\:*?"<>|') and self.name.isprintable()
        allowed = allowed and self.name[0] != "." and self.name[-1] not in ". "
        require(bool(allowed), "site.name", repr(self.name), "must be fit for the name of a folder")
        numbers = {"site.work": (self.work, (int, float)), "site.drones": (self.drones, (int,))}
        for setting, (value, kinds) in numbers.items():
            right = isinstance(value, kinds) and not isinstance(value, bool)
            require(right, setting, repr(value), "must be a number")
        require(0 < self.work <= 1, "site.work", self.work, "must lie between 0 and 1")
        require(1 <= self.drones <= 100, "site.drones", self.drones, "must lie between 1 and 100")


def blend(base: DomainConfig, shares: dict[str, np.ndarray], strength: float) -> DomainConfig:
    """A domain on the way from `base` to a mixture of the types of each table.

    Args:
      base: the preset's.
      shares: of each type, by the name of the table; they add up to 1.
      strength: 0 stays at the base, 1 is the mixture.
    """
    tables = {"city": CITIES, "weather": WEATHERS, "link": LINKS}
    changes: dict[str, Any] = {}
    for name, table in tables.items():
        kinds = list(table.values())
        for setting in kinds[0]:
            mixture = np.sum(
                [s * np.array(k[setting]) for s, k in zip(shares[name], kinds, strict=True)], 0
            )
            pair = (1 - strength) * np.array(getattr(base, setting)) + strength * mixture
            changes[setting] = tuple(round(float(number), 4) for number in pair)
    return dataclasses.replace(base, **changes)


def draw_sites(
    config: FederationConfig, base: RunConfig, seed: int, strength: float
) -> tuple[list[Site], list[Site]]:
    """Sites, and strangers: sites drawn likewise that are not trained.

    Each site's city, weather and link are Dirichlet mixtures of the types of the tables above; the
    first sites are the same however many are drawn.
    """
    drawn = []
    sizes = config.drones or (base.env.drones,)
    for index in range(config.sites + config.strangers):
        stranger = index >= config.sites
        number = index - config.sites if stranger else index
        random = np.random.default_rng([seed, int(stranger), number])
        shares = {
            name: random.dirichlet([config.concentration] * len(table))
            for name, table in (("city", CITIES), ("weather", WEATHERS), ("link", LINKS))
        }
        work = 1 - strength * (1 - LEAST_WORK) * random.uniform()
        name = f"stranger-{number}" if stranger else f"{number:02d}"
        drones = sizes[number % len(sizes)]
        drawn.append(Site(name, drones, round(work, 3), blend(base.domain, shares, strength)))
    return drawn[: config.sites], drawn[config.sites :]


def find_sites(config: FederationConfig, base: RunConfig) -> tuple[list[Site], list[Site]]:
    """The sites of a population, and strangers; raises `ConfigError` when there is none such."""
    if config.population in POPULATIONS:
        strength = config.heterogeneity
        if strength is None:
            strength = POPULATIONS[config.population]
        return draw_sites(config, base, base.training.seed, strength)
    allowed = f"must be one of {', '.join(POPULATIONS)}, or a JSON file of sites"
    path = Path(config.population)
    require(path.suffix == ".json", "population", config.population, allowed)
    sites = read_sites(path, base)
    listed = f"{path} lists {len(sites)}"
    require(len(sites) == config.sites, "sites", config.sites, listed)
    # Strangers are drawn, for a file tells of no population.
    return sites, draw_sites(config, base, base.training.seed, 1.0)[1]


def read_sites(path: Path, base: RunConfig) -> list[Site]:
    """The sites that a file lists; raises `ConfigError` when it cannot be used.

    The file is a JSON list of objects with any of `name`, `drones`, `work` and `domain`; what is
    missing is the preset's, and a domain may be told in part.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"population = {path} is not allowed: {error}") from None
    right = isinstance(listed, list) and listed and all(isinstance(each, dict) for each in listed)
    require(bool(right), "population", path, "must be a JSON list of sites")
    sites = [read_site(each, f"{index:02d}", base) for index, each in enumerate(listed)]
    names = [site.name.casefold() for site in sites]  # as folders of Windows and macOS
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, "site.name", twice, f"{path} names it twice")
    return sites


def read_site(told: dict[str, Any], name: str, base: RunConfig) -> Site:
    """One site of a file."""
    known = [item.name for item in dataclasses.fields(Site)]
    unknown = next((key for key in told if key not in known), None)
    if unknown is not None:
        refuse(f"site.{unknown}", told[unknown], f"known are {', '.join(known)}")
    domain = told.get("domain", {})
    require(isinstance(domain, dict), "site.domain", domain, "must be an object of ranges")
    whole = dataclasses.asdict(base.domain) | domain
    return Site(
        name=str(told.get("name", name)),
        drones=told.get("drones", base.env.drones),
        work=told.get("work", 1.0),
        domain=from_dict(whole, DomainConfig, "site.domain."),
    )


def as_dicts(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Sites as `read_sites` reads them."""
    return [dataclasses.asdict(site) for site in sites]
