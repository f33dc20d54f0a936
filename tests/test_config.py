"""Bad settings are refused by name, and good ones survive being written down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from typing import Annotated, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxqmix.config import (
    CheckpointConfig,
    ConfigError,
    DomainConfig,
    EnvConfig,
    EvaluationConfig,
    LearnerConfig,
    Range,
    ReplayConfig,
    RewardConfig,
    RunConfig,
    TrainingConfig,
    from_dict,
    hints_of,
    to_dict,
)
from jaxqmix.presets import PRESETS, preset

SECTIONS = {
    "env": EnvConfig,
    "domain": DomainConfig,
    "domain.reward": RewardConfig,
    "learner": LearnerConfig,
    "replay": ReplayConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "checkpoint": CheckpointConfig,
}

NOT_A_NUMBER, INFINITE = float("nan"), float("inf")

BAD = {
    "env.drones": (0, -1, 101),
    "env.city_width": (0.0, -1000.0, NOT_A_NUMBER, INFINITE, 1010.0, 200_020.0),
    "env.city_length": (0.0, -1000.0, NOT_A_NUMBER, INFINITE, 990.0),
    "env.cell_size": (0.0, -20.0, NOT_A_NUMBER, INFINITE, 250.1, 1000.0, 5000.0),
    "env.horizon": (0, -100, 100_001),
    "env.no_fly_zones": (-1, 17),
    "env.sensing": ("radar", ""),
    "env.coverage_target": (0.0, -0.5, NOT_A_NUMBER, INFINITE),
    "env.min_altitude": (0.0, -20.0, NOT_A_NUMBER),
    "env.max_altitude": (39.0, 501.0, -120.0, NOT_A_NUMBER),
    "env.climb": (0.0, -20.0, NOT_A_NUMBER),
    "env.cruise_speed": (0.0, -15.0, INFINITE),
    "env.radio_range": (-1.0, NOT_A_NUMBER),
    "env.neighbours": (-1,),
    "env.foresight": (-1, 11),
    "env.zone_foresight": (-1, 11),
    "env.patch": (0, 4, -5, 33),
    "domain.building_density": ((-0.1, 1.0), (0.0, 3.1), (1.0, 0.5), (1.0,), (0.0, NOT_A_NUMBER)),
    "domain.building_height": ((-0.1, 1.0), (0.0, 3.1), (1.0, 0.5)),
    "domain.wind_speed": ((-1.0, 5.0), (0.0, 31.0), (5.0, 4.0)),
    "domain.turbulence": ((-1.0, 1.0), (0.0, 11.0)),
    "domain.visibility": ((0.0, 1.0), (0.5, 1.1), (1.0, 0.5), (0.1, 0.5, 1.0)),
    "domain.packet_loss": ((-0.1, 0.1), (0.1, 1.1), (0.3, 0.2)),
    "domain.delay": ((-0.1, 0.1), (0.1, 1.1), (INFINITE, INFINITE)),
    "domain.sensor_noise": ((-1.0, 1.0), (0.0, 51.0)),
    "domain.reward.area": (-1.0, NOT_A_NUMBER),
    "domain.reward.bonus": (-0.1, INFINITE),
    "domain.reward.perimeter": (-0.35, INFINITE),
    "domain.reward.conflict": (-20.0,),
    "domain.reward.building_hit": (-3.0,),
    "domain.reward.violation": (-3.0,),
    "domain.reward.energy": (-0.02,),
    "learner.network": ("transformer",),
    "learner.mixer": ("qtran",),
    "learner.hidden": (0, -128),
    "learner.layers": (0, -2),
    "learner.mixing_width": (0,),
    "learner.gamma": (-0.1, 1.1, NOT_A_NUMBER),
    "learner.trace": (-0.1, 1.1),
    "learner.reward_scale": (0.0, -1.0),
    "learner.learning_rate": (0.0, -5e-4, NOT_A_NUMBER),
    "learner.learning_rate_hold": (-0.1, 1.1),
    "learner.learning_rate_end": (-0.1, 1.1),
    "learner.max_gradient_norm": (0.0, -5.0),
    "learner.target_update": (0.0, -0.1, 1.1),
    "learner.average_decay": (-0.1, 1.1),
    "learner.epochs": (0,),
    "learner.minibatches": (0, -4),
    "replay.capacity": (0, -1),
    "replay.warmup": (0, 5000),
    "replay.batch": (0,),
    "training.mode": ("offline",),
    "training.env_steps": (0, -1),
    "training.episodes": (0, -500),
    "training.swarms": (0, -64),
    "training.rollout": (0, -10),
    "training.coverage_target": (0.0, -1.0, math.nan),
    "training.seed": (-1, 2**32),
    "training.epsilon_start": (-0.1, 1.1),
    "training.epsilon_end": (-0.1, 1.1),
    "training.epsilon_decay_steps": (0,),
    "training.epsilon_decay_per_episode": (-0.1, 1.1),
    "evaluation.every_episodes": (0,),
    "evaluation.episodes": (0,),
    "evaluation.final_episodes": (0,),
    "evaluation.seed": (-1, 2**32),
    "evaluation.max_collision_rate": (-0.1, 1.1),
    "evaluation.min_return": (NOT_A_NUMBER,),
    "evaluation.min_coverage": (-0.1, 1.1),
    "checkpoint.every_episodes": (0,),
    "checkpoint.keep": (0,),
}


@pytest.mark.parametrize(
    ("setting", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_bad_value_is_refused(setting, value):
    """The error names the setting and the value; of a range, the end that is not finite."""
    section, name = setting.rsplit(".", 1)
    ends = value if isinstance(value, tuple) else ()
    named = next((end for end in ends if not math.isfinite(end)), value)
    with pytest.raises(ConfigError, match=re.escape(f"{setting} = {named} ")):
        SECTIONS[section](**{name: value})


def test_every_setting_has_a_bad_value():
    """No numeric or named setting goes unchecked."""
    files = {"env.city", "env.city_checksum"}  # checked where the file is read
    unchecked = files | {"domain.reward", "env.blind_to"}
    settings = {f"{s}.{f.name}" for s, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    switches = {"learner.double_q", "env.right_of_way", "evaluation.symmetric"}
    assert settings - unchecked - switches - set(BAD) == set()


def limited(kind):
    """Names, types and limits of a section's numbers."""
    for name, hint in hints_of(kind).items():
        if get_origin(hint) is Annotated:
            yield name, *get_args(hint)


HUGE = (10**401, -(10**401), 10**5000, 1e308, -1e308)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_limits(section):
    """Also whole numbers that no float holds are refused in one short line."""
    kind = SECTIONS[section]
    limits = {name: limit for name, _, limit in limited(kind)}
    numbers = [f.name for f in dataclasses.fields(kind) if type(f.default) in (int, float)]
    assert set(numbers) - set(limits) <= {"double_q", "right_of_way", "symmetric"}
    for name, hint, limit in limited(kind):
        assert -1e39 < limit.low < limit.high < 1e39
        for value in HUGE:
            value = value if hint is not int else int(value)
            with pytest.raises(ConfigError, match=rf"{name} = .* is not allowed") as refusal:
                kind(**{name: (value, value) if hint == Range else value})
            assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["False", "no", 0, 1, None, np.bool_(True), 7])
@pytest.mark.parametrize(
    ("section", "name"),
    [("env", "right_of_way"), ("learner", "double_q"), ("evaluation", "symmetric")],
)
def test_switches_are_true_or_false(section, name, value):
    with pytest.raises(ConfigError, match=rf"{section}\.{name} = .* must be True or False"):
        SECTIONS[section](**{name: value})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RunConfig(domain=None), "domain = None is not allowed: must be a DomainConfig"),
        (
            lambda: RunConfig(env={"drones": 3}),
            "env = {'drones': 3} is not allowed: must be a EnvC",
        ),
        (lambda: RunConfig(preset=3), "preset = 3 is not allowed: must be a text"),
        (lambda: RunConfig(preset=""), "preset =  is not allowed: must be a name"),
        (lambda: RunConfig(preset="a\nb"), r"preset = a\nb is not allowed: must be a name"),
        (lambda: DomainConfig(reward=None), "domain.reward = None is not allowed: must be a Rew"),
        (lambda: EnvConfig(blind_to=["clock"]), "env.blind_to = ['clock'] is not allowed: must be"),
        (lambda: EnvConfig(blind_to=None), "env.blind_to = None is not allowed: must be a tuple"),
        (lambda: EnvConfig(sensing=["radar"]), "env.sensing = ['radar'] is not allowed: must be"),
        (
            lambda: DomainConfig(wind_speed=(False, True)),
            "domain.wind_speed = (False, True) is not",
        ),
        (lambda: EnvConfig(city=3), "env.city = 3 is not allowed: must be a text"),
    ],
)
def test_values_of_another_kind_are_refused(make, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        make()


def test_a_long_value_is_shortened_and_kept_in_one_line():
    for value in ("x" * 3000, "a\nb\x1b[31m" * 1000):
        with pytest.raises(ConfigError, match=r"characters\) is not allowed") as refusal:
            EnvConfig(sensing=value)
        assert len(str(refusal.value)) < 400 and str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"env_steps": 4 * 10**9, "swarms": 8, "rollout": 1}, "gradient steps, and 2,147,483,647"),
        ({"env_steps": 10**12}, "gradient steps"),
        ({"env_steps": 10**11, "swarms": 4096}, "must be at most 10,000,000,000 env steps"),
    ],
)
def test_budgets_beyond_32_bits_are_refused(training, words):
    with pytest.raises(ConfigError, match=rf"training\.env_steps = .*{words}"):
        RunConfig(training=TrainingConfig(**training))


def test_whole_numbers_of_a_float_setting_become_floats():
    """So that 1000 and 1000.0 are one setting, also where JSON texts are compared."""
    whole = EnvConfig(city_width=1000), DomainConfig(wind_speed=(0, 5))
    assert json.dumps([to_dict(each) for each in whole]) == json.dumps(
        [to_dict(EnvConfig(city_width=1000.0)), to_dict(DomainConfig(wind_speed=(0.0, 5.0)))]
    )


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 12),
    st.floats(),
    st.floats(0, 2),
    st.text(max_size=5),
    st.sampled_from(["mlp", "gru", "qmix", "vdn", "online", "replay", "footprint", "clock"]),
    st.tuples(st.floats(0, 2), st.floats(0, 2)),
    st.lists(st.text(max_size=3), max_size=2),
    st.lists(st.text(max_size=3), max_size=2).map(tuple),
    st.builds(np.float64, st.floats(0, 1)),
    st.builds(np.int64, st.integers(0, 9)),
    st.builds(dict),
)


def likely(hint):
    """Values of a field's type within its limits, and sometimes anything else."""
    if get_origin(hint) is not Annotated:
        return JUNK
    hint, limit = get_args(hint)
    if hint == Range:
        ends = st.lists(st.floats(limit.low, limit.high), min_size=2, max_size=2)
        return st.one_of(ends.map(lambda pair: tuple(sorted(pair))), JUNK)
    numbers = st.floats(limit.low, limit.high) | st.integers(int(limit.low), int(limit.high))
    return st.one_of(numbers, st.integers(1, 64), JUNK)


VALUES = {
    section: {name: likely(hint) for name, hint in hints_of(kind).items()}
    for section, kind in SECTIONS.items()
}


@settings(max_examples=40)
@given(st.data())
def test_whatever_is_accepted_is_saved_and_read_back_equal(data):
    """Any values of any settings, one section after the other."""
    accepted = {}
    for section, kind in SECTIONS.items():
        names = data.draw(st.sets(st.sampled_from(sorted(hints_of(kind))), max_size=3))
        values = {name: data.draw(VALUES[section][name], name) for name in sorted(names)}
        try:
            found = kind(**values)
        except ConfigError as refusal:
            assert str(refusal).isprintable() and len(str(refusal)) < 1000
            continue
        again = from_dict(json.loads(json.dumps(to_dict(found), allow_nan=False)), kind)
        assert again == found and hash(again) == hash(found)
        assert json.dumps(to_dict(again)) == json.dumps(to_dict(found))
        accepted[section] = found
    accepted.pop("domain.reward", None)
    with contextlib.suppress(ConfigError):
        whole = RunConfig(**accepted)
        assert from_dict(json.loads(json.dumps(to_dict(whole)))) == whole


ANY_JSON = st.recursive(
    JUNK,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["env", "domain", "reward", "learner", "drones", "preset"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(ANY_JSON)
def test_any_file_is_a_config_or_refused(data):
    """Nothing but `ConfigError`, whatever a config file holds."""
    with contextlib.suppress(ConfigError):
        assert isinstance(from_dict(data), RunConfig)


LIMITS = {
    "env": ({"drones": 1}, {"drones": 100}, {"coverage_target": 1.0}, {"no_fly_zones": 16}),
    "domain": ({"visibility": (0.05, 1.0)}, {"packet_loss": (0.0, 1.0)}, {"delay": (1.0, 1.0)}),
    "learner": ({"gamma": 1.0}, {"trace": 0.0}, {"target_update": 1.0}, {"average_decay": 0.0}),
    "training": ({"seed": 2**32 - 1}, {"epsilon_start": 0.0}, {"epsilon_decay_per_episode": 1.0}),
}


@pytest.mark.parametrize(
    ("section", "values"), [(name, values) for name, many in LIMITS.items() for values in many]
)
def test_limits_are_allowed(section, values):
    """The ends of each range belong to it."""
    config = SECTIONS[section](**values)
    assert all(getattr(config, name) == value for name, value in values.items())


def test_more_drones_than_fit_are_refused():
    """The error says how many fit."""
    with pytest.raises(ConfigError, match=r"env\.drones = 7 .*at most 6 drones"):
        EnvConfig(drones=7, city_width=160.0, city_length=120.0)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"env_steps": 639}, "training.env_steps = 639 "),
        ({"episodes": 6}, "training.episodes = 6 "),
        ({"swarms": 4096, "rollout": 128, "env_steps": 300_000}, "training.env_steps = 300000 "),
    ],
)
def test_budget_below_one_rollout_is_refused(training, named):
    """A run must pay for one rollout of all swarms: 64 x 10 env steps by default."""
    with pytest.raises(ConfigError, match=re.escape(named)):
        RunConfig(training=TrainingConfig(**training))


def test_smallest_budgets_are_allowed():
    """Exactly one rollout is enough, in env steps and in episodes of 100 steps."""
    assert RunConfig(training=TrainingConfig(env_steps=640)).iterations == 1
    assert RunConfig(training=TrainingConfig(episodes=7)).iterations == 1
    assert RunConfig(training=TrainingConfig(episodes=64)).budget == 6400


def test_sections_must_agree():
    """Minibatches divide the batch, and the store holds a rollout."""
    with pytest.raises(ConfigError, match=r"training\.swarms = 64 .*minibatches = 3"):
        RunConfig(learner=LearnerConfig(minibatches=3))
    replay = TrainingConfig(mode="replay")
    with pytest.raises(ConfigError, match=r"replay\.batch = 30 .*minibatches = 8"):
        RunConfig(training=replay, replay=ReplayConfig(batch=30))
    with pytest.raises(ConfigError, match=r"replay\.capacity = 32 .*64"):
        RunConfig(training=replay, replay=ReplayConfig(capacity=32, warmup=8))
    RunConfig(replay=ReplayConfig(capacity=32, warmup=8, batch=30))


def test_a_run_must_be_able_to_learn():
    """Episodes begin between rollouts, and a store that never gets warm teaches nothing."""
    with pytest.raises(ConfigError, match=r"training\.rollout = 101 .*env\.horizon = 100"):
        RunConfig(training=TrainingConfig(rollout=101))
    RunConfig(training=TrainingConfig(rollout=100))
    short = TrainingConfig(mode="replay", env_steps=4 * 640 - 1)
    with pytest.raises(ConfigError, match=r"replay\.warmup = 193 .*at most the 192 sequences"):
        RunConfig(training=short, replay=ReplayConfig(warmup=193))
    RunConfig(training=short, replay=ReplayConfig(warmup=192))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("env", "drones", 5.0),
        ("env", "horizon", True),
        ("env", "city_width", "1000"),
        ("training", "seed", np.int64(1)),
        ("training", "episodes", 2.5),
        ("domain.reward", "area", None),
    ],
)
def test_numbers_of_another_type_are_refused(section, name, value):
    """They would fail later: in shapes, or when the settings are written as JSON."""
    with pytest.raises(
        ConfigError, match=re.escape(f"{section}.{name} = {value!r} is not allowed")
    ):
        SECTIONS[section](**{name: value})


@pytest.mark.parametrize("value", ["5", True, ("a", 1.0), None])
def test_ranges_are_pairs(value):
    """Or one number, for both ends."""
    assert DomainConfig(wind_speed=5) == DomainConfig(wind_speed=(5, 5))
    with pytest.raises(ConfigError, match=r"domain\.wind_speed = .* must be a pair of numbers"):
        DomainConfig(wind_speed=value)


def test_grid_has_rows_along_y():
    """A wide city has more columns than rows."""
    config = EnvConfig(city_width=880.0, city_length=600.0)
    assert (config.rows, config.columns) == (30, 44)
    assert config.step_seconds == pytest.approx(20 / 15)


def test_configs_are_frozen_and_hashable():
    """A config can be a static argument."""
    assert hash(RunConfig()) == hash(RunConfig())
    assert EnvConfig(drones=3) != EnvConfig(drones=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EnvConfig().drones = 3


CUSTOM = RunConfig(
    preset="mine",
    env=EnvConfig(drones=3, city_width=880.0, city_length=600.0, sensing="probabilistic"),
    domain=DomainConfig(visibility=(0.5, 0.75), reward=RewardConfig(conflict=7.5)),
    learner=LearnerConfig(mixer="vdn", minibatches=2),
    training=TrainingConfig(episodes=1234, epsilon_decay_per_episode=0.995, swarms=8),
    checkpoint=CheckpointConfig(keep=5),
)


@pytest.mark.parametrize("config", [*PRESETS.values(), CUSTOM], ids=lambda config: config.preset)
def test_round_trip(config):
    """A config written as JSON and read again is the same config."""
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(to_dict(config.env), EnvConfig) == config.env


def test_missing_settings_keep_their_defaults():
    """Only what is written differs."""
    config = from_dict({"env": {"drones": 7}, "domain": {"reward": {"area": 2.0}}})
    expected = RunConfig(
        env=EnvConfig(drones=7), domain=DomainConfig(reward=RewardConfig(area=2.0))
    )
    assert config == expected


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"drone": 5}, "drone = 5 "),
        ({"env": {"dronez": 5}}, "env.dronez = 5 "),
        ({"domain": {"reward": {"areas": 1}}}, "domain.reward.areas = 1 "),
        ({"training": {"batch": 1}}, "training.batch = 1 "),
    ],
)
def test_unknown_setting_is_refused(data, named):
    """A typo is an error that lists the known settings, not a new setting."""
    with pytest.raises(ConfigError, match=re.escape(named) + ".*known settings"):
        from_dict(data)


def test_settings_are_replaced_by_dotted_names():
    """What is judged together is changed together, and nothing else changes."""
    changes = {"env.drones": 3, "domain.packet_loss": 0.3, "domain.wind-speed": [1, 2]}
    config = RunConfig().replace(preset="mine", **changes, **{"domain.reward.area": 2.0})
    reward = RewardConfig(area=2.0)
    domain = DomainConfig(packet_loss=(0.3, 0.3), wind_speed=(1, 2), reward=reward)
    assert config == RunConfig("mine", EnvConfig(drones=3), domain)
    assert preset("full", **{"env.drones": 3}).env.drones == 3
    larger = {"env.city_width": 2500.0, "env.cell_size": 500.0, "env.city_length": 2500.0}
    assert RunConfig().replace(**larger, **{"env.drones": 2}).env.rows == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env.drons": 3}, "env.drons = 3 is not allowed: did you mean env.drones"),
        ({"drones": 3}, "drones = 3 is not allowed: did you mean env.drones"),
        ({"env.drones.more": 3}, "env.drones.more = 3 is not allowed: env.drones is a single"),
        ({"env": 3}, "env = 3 is not allowed: it is a section"),
        ({"env.drones": 0}, "env.drones = 0 is not allowed: must lie between 1 and 100"),
        ({"colour": "red"}, "colour = red is not allowed: there is no such setting"),
    ],
)
def test_bad_replacements_are_refused(settings, words):
    """In one line, with the setting that was meant."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        RunConfig().replace(**settings)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"domain": 3}, "domain = 3 is not allowed: must be a mapping"),
        ({"domain": {"reward": []}}, "domain.reward = [] is not allowed: must be a mapping"),
        ([], "config = [] is not allowed: must be a mapping"),
        (None, "config = None is not allowed: must be a mapping"),
        ({3: 4}, "3 = 4 is not allowed: known settings are"),
    ],
)
def test_a_section_that_is_no_mapping_is_refused(data, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        from_dict(data)


def test_bad_value_in_a_dictionary_is_refused():
    """Reading checks as making does."""
    with pytest.raises(ConfigError, match=r"env\.drones = 0 "):
        from_dict({"env": {"drones": 0}})


def test_presets():
    """Each preset has its name and its mission; an unknown one is refused by name."""
    missions = {name: (p.env.drones, p.env.city_width, p.env.rows) for name, p in PRESETS.items()}
    assert missions["quick"] == (5, 1000.0, 50)
    assert missions["full"] == (10, 5000.0, 100)
    assert missions["scale20"] == (20, 5000.0, 100)
    for name in PRESETS:
        assert preset(name).preset == name
    for name in ("quick", "full", "scale20"):
        env, by_chance = preset(name).env, preset(f"{name}-probabilistic").env
        assert (by_chance.sensing, by_chance.drones) == ("probabilistic", env.drones)
        assert by_chance.horizon > env.horizon
    with pytest.raises(ConfigError, match=r"preset = huge .*quick"):
        preset("huge")


def test_the_top_is_reached_by_whole_climbs():
    def top(lowest, climb, highest):
        return EnvConfig(min_altitude=lowest, climb=climb, max_altitude=highest).top_altitude

    assert (top(20, 20, 120), top(20, 80, 175), top(30, 0.1, 120)) == (120, 100, 120)
