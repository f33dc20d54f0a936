"""Sites: how they are drawn and listed."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxqmix.config import ConfigError, DomainConfig
from jaxqmix.env.domain import RANGES, draw_params, ranges
from jaxqmix.federated import sites
from jaxqmix.federated.config import FederationConfig
from jaxqmix.presets import QUICK


def test_alike_sites_are_the_preset():
    config = FederationConfig(population="sites-alike", sites=3, per_round=3)
    drawn, strangers = sites.find_sites(config, QUICK)
    assert [site.name for site in drawn] == ["00", "01", "02"] and len(strangers) == 4
    for site in drawn + strangers:
        assert site.domain == QUICK.domain and site.work == 1 and site.drones == 5


def test_mixed_sites_differ_by_their_strength_and_stay_the_same():
    half = FederationConfig(heterogeneity=0.5)
    whole = FederationConfig()
    few = FederationConfig(sites=4, per_round=4)
    mixed, strangers = sites.find_sites(whole, QUICK)
    for a, b in zip(sites.find_sites(few, QUICK)[0], mixed, strict=False):
        assert a == b
    halfway, _ = sites.find_sites(half, QUICK)
    for one, two in zip(mixed, halfway, strict=True):
        for name in RANGES:
            base = np.array(getattr(QUICK.domain, name))
            middle = (base + np.array(getattr(one.domain, name))) / 2
            np.testing.assert_allclose(getattr(two.domain, name), middle, atol=2e-4)
        assert two.work == pytest.approx((1 + one.work) / 2, abs=2e-3)
        assert 0.5 <= one.work <= 1
    visibilities = [site.domain.visibility[0] for site in mixed + strangers]
    assert max(visibilities) - min(visibilities) > 0.2
    seeded = dataclasses.replace(QUICK, training=dataclasses.replace(QUICK.training, seed=1))
    assert sites.find_sites(whole, seeded)[0] != mixed


def test_ranges_draw_the_same_worlds_as_the_config():
    other = DomainConfig(wind_speed=(3.0, 4.0), visibility=(0.5, 0.6))
    stacked = ranges([QUICK.domain, other])
    for place, domain in enumerate((QUICK.domain, other)):
        key = jax.random.key(place)
        one = jax.tree.map(lambda leaf: leaf[place], stacked)  # noqa: B023
        drawn, expected = draw_params(key, one), draw_params(key, domain)
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_sites_in_a_file(tmp_path):
    path = tmp_path / "sites.json"
    listed = [{"name": "harbour", "drones": 7, "domain": {"wind_speed": [10, 20]}}, {"work": 0.5}]
    path.write_text(json.dumps(listed))
    config = FederationConfig(population=str(path), sites=2, per_round=2, minimum=1)
    (harbour, other), strangers = sites.find_sites(config, QUICK)
    assert harbour.name == "harbour" and harbour.drones == 7
    assert harbour.domain == dataclasses.replace(QUICK.domain, wind_speed=(10, 20))
    assert other == sites.Site("01", 5, 0.5, QUICK.domain) and len(strangers) == 4
    path.write_text(json.dumps(sites.as_dicts([harbour, other])))
    assert sites.find_sites(config, QUICK)[0] == [harbour, other]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not allowed"),
        ("{}", "must be a JSON list of sites"),
        ('[{"colour": 1}, {}]', "site.colour = 1 is not allowed: known are name, drones"),
        ('[{"work": 2}, {}]', "site.work = 2 is not allowed"),
        ('[{"work": "0.5"}, {}]', "site.work = '0.5' is not allowed: must be a number"),
        ('[{"work": null}, {}]', "site.work = None is not allowed: must be a number"),
        ('[{"drones": true}, {}]', "site.drones = True is not allowed: must be a number"),
        ('[{"drones": 0}, {}]', "site.drones = 0 is not allowed: must lie between 1 and 100"),
        ('[{"name": "../x"}, {}]', "fit for the name of a folder"),
        ('[{"name": "a\\u0000"}, {}]', "fit for the name of a folder"),
        ('[{"name": "a."}, {}]', "fit for the name of a folder"),
        ('[{"name": "a"}, {"name": "a"}]', "names it twice"),
        ('[{"name": "North"}, {"name": "north"}]', "names it twice"),
        ("[" * 100_000, "is not allowed"),
        ('[{"domain": {"wind": [0, 1]}}, {}]', "site.domain.wind"),
        ("[{}]", "sites = 2 is not allowed: .* lists 1"),
    ],
)
def test_bad_files_say_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "sites.json"
    path.write_text(text)
    config = FederationConfig(population=str(path), sites=2, per_round=2, minimum=1)
    with pytest.raises(ConfigError, match=message):
        sites.find_sites(config, QUICK)


def test_unknown_populations_and_missing_files():
    for population, message in (("mars", "must be one of sites-alike"), ("no.json", "No such")):
        with pytest.raises(ConfigError, match=message):
            sites.find_sites(FederationConfig(population=population), QUICK)
