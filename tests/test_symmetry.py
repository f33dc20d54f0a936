"""A world turned or mirrored is seen, and acted in, as the table says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_options

from jaxqmix.config import EnvConfig, LearnerConfig
from jaxqmix.env import dynamics, sensing
from jaxqmix.env.observation import feature_slices, observe, symmetries
from jaxqmix.learner.networks import AgentNetwork, SymmetryEnsemble, hidden_state_size, transformed
from jaxqmix.presets import QUICK
from jaxqmix.training import make_trainer
from jaxqmix.types import ACTIONS, replace

# Whole coarse blocks: they are aligned with the city's north-western corner.
FINE = EnvConfig(
    drones=5,
    city_width=1280.0,
    city_length=1280.0,
    cell_size=20.0,
    no_fly_zones=2,
)
COARSE = dataclasses.replace(FINE, city_width=3200.0, city_length=3200.0, cell_size=50.0)
SYMMETRIES = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]
"""Quarter turns clockwise, and whether west and east change places then."""


def turn_grid(grid, quarters, mirrored):
    """A map [H, W], turned."""
    grid = np.rot90(grid, -quarters)
    return np.fliplr(grid) if mirrored else grid


def turn_vectors(vectors, quarters, mirrored):
    """Vectors [..., 2 or more] along x and y, turned."""
    result = np.array(vectors)
    for _ in range(quarters):
        result[..., 0], result[..., 1] = -result[..., 1], result[..., 0].copy()
    if mirrored:
        result[..., 0] *= -1
    return result


def turn_places(places, config, quarters, mirrored):
    """Places in the city [..., 2 or more], turned around its middle."""
    middle = np.zeros(np.shape(places)[-1])
    middle[:2] = config.city_width / 2
    return (turn_vectors(places - middle, quarters, mirrored) + middle).astype(np.float32)


def turn_actions(actions, quarters, mirrored):
    """The action that each action becomes."""
    names = ["north", "east", "south", "west"]
    table = {}
    for index, name in enumerate(names):
        name_then = names[(index + quarters) % 4]
        if mirrored:
            name_then = {"west": "east", "east": "west"}.get(name_then, name_then)
        table[ACTIONS.index(name)] = ACTIONS.index(name_then)
    return np.vectorize(lambda action: table.get(action, action))(actions)


@functools.cache
def compiled_parts(config):
    """Packs unseen cells, and finds what obstructs drones: one program for all symmetries."""

    def parts(unseen, city, position):
        packed = sensing.pack_unseen(unseen, config)
        return packed, dynamics.obstructed_actions(city, position, config)

    return jax.jit(parts, compiler_options=quick_options())


def turn_world(state, params, config, *symmetry):
    """The whole state and its world, turned."""
    city = replace(
        state.city,
        heights=jnp.asarray(turn_grid(state.city.heights, *symmetry)),
        no_fly=jnp.asarray(turn_places(state.city.no_fly, config, *symmetry)),
    )
    unseen = turn_grid(sensing.unpack_unseen(state.unseen, config), *symmetry)
    position = jnp.asarray(turn_places(state.position, config, *symmetry))
    unseen, obstruction = compiled_parts(config)(unseen, city, position)
    state = replace(
        state,
        city=city,
        unseen=unseen,
        position=position,
        last_action=jnp.asarray(turn_actions(state.last_action, *symmetry)),
        obstruction=obstruction,
    )
    return state, replace(params, wind=jnp.asarray(turn_vectors(params.wind, *symmetry)))


@pytest.mark.parametrize("config", [FINE, COARSE], ids=["20 m cells", "50 m cells"])
def test_the_turned_world_is_seen_as_the_table_says(config, fly, take):
    flight = fly(config, steps=40, swarms=3, seed=5, thorough=False)
    table = symmetries(config)
    look = jax.jit(lambda *world: observe(*world, config), compiler_options=quick_options())
    noise = np.random.default_rng(0).normal(size=(config.drones, 3)).astype(np.float32)
    for swarm, time in ((0, 3), (1, 20), (2, 40)):
        state, params = take(flight["states"], swarm, time), take(flight["params"], swarm)
        before = look(state, params, noise)
        for index, symmetry in enumerate(SYMMETRIES):
            world = turn_world(state, params, config, *symmetry)
            after = look(*world, turn_vectors(noise, *symmetry))
            expected = table.sign[index] * before.agents[:, table.source[index]]
            expected += table.offset[index]
            for name, where in feature_slices(config).items():
                np.testing.assert_allclose(
                    after.agents[:, where], expected[:, where], atol=2e-4, err_msg=name
                )
            actions = turn_actions(np.arange(len(ACTIONS)), *symmetry)
            np.testing.assert_array_equal(table.actions[index], actions)
            np.testing.assert_array_equal(after.available[:, actions], before.available)


def test_longer_cities_are_not_turned_on_their_side():
    longer = dataclasses.replace(FINE, city_length=640.0)
    assert symmetries(FINE).actions.shape == (8, len(ACTIONS))
    kept = [s for s in SYMMETRIES if s[0] % 2 == 0]
    expected = [turn_actions(np.arange(len(ACTIONS)), *symmetry) for symmetry in kept]
    np.testing.assert_array_equal(symmetries(longer).actions, expected)


def test_blank_groups_stay_blank():
    config = dataclasses.replace(FINE, blind_to=("pose",))
    assert symmetries(FINE).offset[:, feature_slices(FINE)["pose"]].any()
    assert not symmetries(config).offset.any()


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_turned_agents_see_the_turned_world(network):
    table = symmetries(FINE)
    features = table.source.shape[1]
    config = LearnerConfig(network=network, hidden=16)
    agent = AgentNetwork(config, features, len(ACTIONS))
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = agent.init(keys[0])
    leaves, tree = jax.tree.flatten(parameters)
    noise = jax.random.split(keys[1], len(leaves))
    leaves = [
        leaf + 0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(noise, leaves, strict=True)
    ]
    parameters = jax.tree.unflatten(tree, leaves)
    agents = transformed(parameters, table)
    seen = jax.random.normal(keys[2], (3, 5, features))  # three steps of five drones
    hidden_state = jnp.zeros((5, hidden_state_size(config)))
    everything = SymmetryEnsemble(agent)
    eight = jnp.zeros((5, 8 * hidden_state_size(config)))
    values, after = everything(agents, seen, eight)
    each = []
    for index in range(8):
        turned_seen = table.sign[index] * seen[..., table.source[index]] + table.offset[index]
        found, kept = agent(jax.tree.map(lambda leaf: leaf[index], agents), seen, hidden_state)  # noqa: B023
        expected, expected_kept = agent(parameters, turned_seen, hidden_state)
        expected = expected[..., table.actions[index]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(kept, expected_kept, rtol=1e-4, atol=1e-4)
        each.append((expected, expected_kept))
        # Seen from all sides, the turned world has the same values, turned.
        again, _ = everything(agents, turned_seen, eight)
        np.testing.assert_allclose(again[..., table.actions[index]], values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values, np.mean([v for v, _ in each], axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        after, np.concatenate([kept for _, kept in each], axis=-1), rtol=1e-4, atol=1e-4
    )


def test_greedy_policies_see_the_world_from_all_sides_unless_told_not_to():
    def agents_of(symmetric, epsilon=None):
        evaluation = dataclasses.replace(QUICK.evaluation, symmetric=symmetric)
        trainer = make_trainer(dataclasses.replace(QUICK, evaluation=evaluation))
        learned = trainer.learner.init(jax.random.key(0))
        policy = trainer.policy(learned.parameters["agent"])
        if epsilon is not None:
            policy = trainer.learner.exploring(learned, trainer.env.agents, epsilon)
        return policy.parameters["dense_0"]["kernel"].shape[:-2]

    assert agents_of(True) == (8,)
    assert agents_of(False) == agents_of(True, jnp.float32(0.1)) == ()
