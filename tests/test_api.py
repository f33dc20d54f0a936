"""Python as a newcomer writes it: own policies, own settings, and wrong arguments."""

from __future__ import annotations

import ast
import functools
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqmix
from jaxqmix import api, console, loading, runner
from jaxqmix.config import ConfigError
from jaxqmix.learner.networks import AgentNetwork
from jaxqmix.types import pytree_dataclass
from jaxqmix.validate import MISSION

TINY = MISSION.replace(**{"env.horizon": 5, "evaluation.episodes": 2})
KEY = jax.random.key(0)


def first_available(key, state, timestep, hidden_state):
    """A policy as a plain function."""
    return timestep.observation.available.argmax(axis=-1), hidden_state


def learned(config=TINY):
    """A loaded policy of fresh weights."""
    env = jaxqmix.make(config)
    init = AgentNetwork(config.learner, env.features, env.actions).init
    make_policy = functools.partial(loading.learned_policy, config, init(KEY))
    return jaxqmix.LoadedPolicy("qmix", config, make_policy)


def loaded_policies():
    return {name: jaxqmix.scripted(name, TINY) for name in jaxqmix.PLANNERS} | {"qmix": learned()}


@pytest.mark.parametrize("name", [*jaxqmix.PLANNERS, "qmix"])
def test_jit_vmap_and_scan_take_policies(name):
    """As arguments and as functions; traced, for compiling would add nothing."""
    loaded = loaded_policies()[name]
    env, policy = loaded.env, loaded.policy
    params = env.draw_params(KEY)

    def fly(policy, key):
        state, timestep = env.reset(key, params)

        def step(carry, key):
            policy, state, timestep, hidden_state = carry
            actions, hidden_state = policy(key, state, timestep, hidden_state)
            state, timestep = env.step(key, state, actions, params)
            return (policy, state, timestep, hidden_state), actions

        carry = policy, state, timestep, policy.initial_hidden_state()
        return jax.lax.scan(step, carry, jax.random.split(key, 3))[1]

    keys = jax.random.split(KEY, 2)
    drones = TINY.env.drones
    flown = jax.eval_shape(jax.jit(jax.vmap(fly, (None, 0))), policy, keys)
    assert flown.shape == (2, 3, drones)
    state, timestep = jax.eval_shape(env.reset, KEY, params)
    actions, _ = jax.eval_shape(
        jax.jit(policy), KEY, state, timestep, policy.initial_hidden_state()
    )
    assert actions.shape == (drones,) and actions.dtype == jnp.int32
    assert policy in {policy} and len(repr(policy)) < 2000


def test_policies_are_data():
    """They can be sent to another process, and flown under another config."""
    for loaded in loaded_policies().values():
        again = pickle.loads(pickle.dumps(loaded))
        assert jax.tree.structure(again.policy) == jax.tree.structure(loaded.policy)
        larger = TINY.replace(**{"env.drones": 3, "domain.packet_loss": 0.5})
        assert loaded.under(larger).env.config.drones == 3
        for mine, theirs in zip(*map(jax.tree.leaves, (loaded.policy, again.policy)), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ConfigError, match=r"env = 20 x 16 cells .*`obstacles` of its obs"):
        learned().under(TINY.replace(**{"env.patch": 7})).policy  # noqa: B018


@pytree_dataclass
class Weighted:
    """A policy of a user's own: a pytree."""

    weights: jax.Array  # [A]

    def initial_hidden_state(self):
        """Nothing."""
        return ()

    def __call__(self, key, state, timestep, hidden_state):
        """Counts how often it is traced."""
        TRACED.append(1)
        scores = jnp.where(timestep.observation.available, self.weights, -jnp.inf)
        return scores.argmax(axis=-1), hidden_state


TRACED: list[int] = []


def test_policies_that_differ_by_their_arrays_compile_once():
    config = TINY
    report, episodes = jaxqmix.evaluate(Weighted(jnp.arange(7.0)), config, episodes=3, keep=True)
    assert report["policy"] == "Weighted" and report["episodes"] == 3
    hovers = jaxqmix.ACTIONS.index("hover")
    assert (episodes.actions == hovers).all()
    once = len(TRACED)
    _, episodes = jaxqmix.evaluate(Weighted(-jnp.arange(7.0)), config, episodes=2, keep=True)
    # Only the check of its shapes traces it again.
    assert len(TRACED) == once + 1 and (episodes.actions != hovers).any()


def test_functions_fly_and_missions_go_on_to_the_horizon():
    """A mission that its first step completes is flown on."""
    easy = TINY.replace(**{"env.coverage_target": 0.01})
    report, _ = jaxqmix.evaluate(first_available, easy, episodes=2, curve=True, to_horizon=True)
    assert report["policy"] == "first_available" and report["to_horizon"]
    assert report["coverage"] > report["coverage_over_time"]["mean"][1] > 0.01


def wrong_pair(key, state, timestep, hidden_state):
    return state.link


def wrong_actions(key, state, timestep, hidden_state):
    return timestep.reward, hidden_state


def wrong_hidden_state(key, state, timestep, hidden_state):
    return state.link, timestep.reward


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jaxqmix.evaluate("voronoi", TINY), "policy = 'voronoi' is not allowed: must be"),
        (lambda: jaxqmix.evaluate(3), "policy = 3 is not allowed"),
        (lambda: jaxqmix.evaluate(Weighted, TINY), "policy = <class"),
        (lambda: jaxqmix.evaluate(first_available), "config = None is not allowed: give the Run"),
        (lambda: jaxqmix.evaluate(first_available, "quick"), "config = 'quick' is not allowed"),
        (lambda: jaxqmix.evaluate(wrong_pair, TINY), "must return a pair"),
        (lambda: jaxqmix.evaluate(wrong_actions, TINY), "policy's actions = float32[] is not"),
        (lambda: jaxqmix.evaluate(wrong_hidden_state, TINY), "policy's hidden state = "),
        (lambda: jaxqmix.evaluate(first_available, TINY, episodes=0), "episodes = 0 is not"),
        (lambda: jaxqmix.evaluate(first_available, TINY, episodes=2.5), "episodes = 2.5 is not"),
        (lambda: jaxqmix.evaluate(first_available, TINY, seed=-1), "seed = -1 is not allowed"),
        (lambda: jaxqmix.record(first_available, TINY, seed="a"), "seed = 'a' is not allowed"),
        (lambda: jaxqmix.scripted("gredy", TINY), "planner = gredy is not allowed"),
        (lambda: jaxqmix.scripted("greedy", "quick"), "config = 'quick' is not allowed"),
        (lambda: jaxqmix.make("quick"), "config = 'quick' is not allowed"),
        (lambda: jaxqmix.train("quick", "run"), "config = 'quick' is not allowed"),
        (lambda: jaxqmix.train(TINY, None), "out = None is not allowed: must be a folder"),
        (lambda: jaxqmix.show(3), "policy = 3 is not allowed"),
    ],
)
def test_wrong_arguments_get_one_line(call, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_policies_are_drawn_and_shown(monkeypatch, tmp_path):
    """Flown first; an episode needs its cell size."""
    flown = []
    monkeypatch.setattr(api, "program", lambda *_: lambda *given: flown.append(given) or (None, 0))
    monkeypatch.setattr(api.jax.tree, "map", lambda *_: "episode")
    drawn = {}
    monkeypatch.setattr("jaxqmix.render.render", lambda *given, **more: drawn.update(more) or given)
    out = tmp_path / "flight.png"
    loaded = jaxqmix.scripted("greedy", TINY)
    assert jaxqmix.draw(loaded, out, seed=7, side=9) == ("episode", out)
    assert drawn == {"cell_size": TINY.env.cell_size, "title": "greedy", "side": 9}
    assert flown[0][1:] == (7, 1)


def test_training_shows_its_progress_unless_quiet(monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr(runner, "train", lambda *given: heard.append(given[3]))
    for options in ({}, {"quiet": True}, {"callback": console.Lines()}):
        jaxqmix.train(TINY, tmp_path / "run", **options)
    assert [type(callback) for callback in heard] == [
        console.Console,
        runner.Callback,
        console.Lines,
    ]


def test_compiled_programs_are_kept_in_python_too(monkeypatch):
    kept = []
    monkeypatch.setattr(loading, "enable_cache", lambda: kept.append(1))
    jaxqmix.make(TINY)
    assert kept


def test_editors_see_every_name():
    """The names for type checkers are those that load."""
    tree = ast.parse(Path(jaxqmix.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == jaxqmix._HOMES
    for name in jaxqmix.__all__:
        assert getattr(jaxqmix, name) is not None
    assert (Path(jaxqmix.__file__).parent / "py.typed").exists()


def test_former_names_still_work():
    """What was renamed answers to its former name for one version, with a warning."""
    with pytest.warns(DeprecationWarning, match=r"jaxqmix\.LoadedPolicy"):
        assert jaxqmix.Flyer is jaxqmix.LoadedPolicy

    class Remembers:
        """A policy as it was written before."""

        def initial_memory(self):
            return jnp.ones(2)

    with pytest.warns(DeprecationWarning, match="initial_hidden_state"):
        assert loading.Opaque(Remembers()).initial_hidden_state().shape == (2,)
