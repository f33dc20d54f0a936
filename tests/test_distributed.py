"""Swarms over several devices: the same gradient, the same flights, every clock on each device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_probes import two_step_game

from jaxqmix.config import LearnerConfig
from jaxqmix.distributed import (
    REPLICATED,
    SWARMS,
    host_memory,
    keep_freed_memory,
    make_mesh,
    on_each_device,
    own_key,
    total,
)
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import evaluator
from jaxqmix.learner.update import make_learner, td_loss
from jaxqmix.planners import planner
from jaxqmix.training import fits
from jaxqmix.types import Sequences


class Library:
    """A C library that notes what malloc is told, and refuses a threshold beyond a limit."""

    def __init__(self, limit=2**30):
        self.told, self.limit = {}, limit

    def mallopt(self, name, value):
        if name == -3 and value > self.limit:
            return 0
        self.told[name] = value
        return 1


@pytest.mark.parametrize(
    ("platform", "library", "told"),
    [
        ("linux", Library(), {-3: 2**30, -1: 2**31 - 1, -2: 2**28}),
        ("linux", Library(2**25), {-3: 2**25, -1: 2**31 - 1, -2: 2**28}),
        ("linux", object(), None),  # another malloc
        ("darwin", Library(), {}),
        ("win32", Library(), {}),
    ],
)
def test_freed_memory_is_kept_where_malloc_knows_how(platform, library, told, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    keep_freed_memory()
    assert getattr(library, "told", None) == told


def test_a_container_may_have_less_memory_than_its_machine(tmp_path):
    machine = host_memory(())
    (tmp_path / "none").write_text("max\n")
    (tmp_path / "some").write_text(f"{10**6}\n")
    nothing = [tmp_path / "none", tmp_path / "missing"]
    assert host_memory(nothing) == machine
    assert host_memory([*nothing, tmp_path / "some"]) == 10**6


if len(jax.devices()) < 2:
    pytest.skip("needs two devices", allow_module_level=True)


def test_gradients_of_the_parts_add_up():
    """Also where the parts hold different numbers of valid steps."""
    batch = two_step_game()
    valid = jnp.ones((2, 16), bool).at[:, 12:].set(False)
    batch = Sequences(**(vars(batch) | {"valid": valid}))
    targets = jax.random.normal(jax.random.key(0), (2, 16, 1))
    config = LearnerConfig(hidden=16, layers=1, mixing_width=4)
    learner = make_learner(config, 5, 2, 2, 3, 1)
    parameters = learner.init(jax.random.key(1)).parameters
    gradient = jax.grad(td_loss, has_aux=True)
    whole, _ = gradient(parameters, batch, targets, learner.agent, learner.mixer)

    over_sequences = jax.sharding.PartitionSpec(None, SWARMS)
    specs = Sequences(**dict.fromkeys(vars(batch), over_sequences))
    specs = Sequences(**(vars(specs) | {"hidden_state": jax.sharding.PartitionSpec(SWARMS)}))

    def part(batch, targets):
        grads, metrics = gradient(parameters, batch, targets, learner.agent, learner.mixer, SWARMS)
        return total((grads, metrics), SWARMS)[0]

    mesh = make_mesh(lambda devices: devices <= 2)
    parts = jax.jit(on_each_device(part, mesh, (specs, over_sequences), REPLICATED))(batch, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts, whole)


def test_episodes_do_not_depend_on_the_number_of_devices(city_block, rough, monkeypatch):
    env = UrbanGrid(city_block, rough)
    policy = planner("random", city_block)
    two, _ = evaluator(env, lambda _: policy, batch=4)((), 0, 4)
    monkeypatch.setattr("jaxqmix.evaluation.make_mesh", lambda _: make_mesh(lambda n: n == 1))
    one, _ = evaluator(env, lambda _: policy, batch=4)((), 0, 4)
    for name, values in two.items():
        np.testing.assert_array_equal(values, one[name])


def test_a_last_batch_that_is_not_full_changes_nothing(city_block, rough):
    env = UrbanGrid(city_block, rough)
    policy = planner("random", city_block)
    whole, recorded = evaluator(env, lambda _: policy, batch=6, record="all")((), 0, 6)
    parts, again = evaluator(env, lambda _: policy, batch=4, record="all")((), 0, 6)
    assert len(np.unique(whole["return"])) == 6
    chex.assert_trees_all_equal((whole, recorded), (parts, again))


def test_every_device_has_its_own_key():
    mesh = make_mesh(lambda devices: devices <= 2)
    keys = jax.jit(
        on_each_device(
            lambda key: jax.random.key_data(own_key(key, SWARMS))[None],
            mesh,
            (REPLICATED,),
            jax.sharding.PartitionSpec(SWARMS),
        )
    )(jax.random.key(0))
    assert len(np.unique(np.asarray(keys), axis=0)) == 2


def test_swarms_that_cannot_be_shared_out_stay_on_one_device():
    from jaxqmix.presets import preset

    config = preset("quick")
    assert fits(config, 1) and fits(config, 2) and not fits(config, 3)
