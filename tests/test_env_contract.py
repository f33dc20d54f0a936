"""The doors of the world: another environment, and another mission, in a few lines each."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqmix
from jaxqmix import runner
from jaxqmix.config import ConfigError, EnvConfig, LearnerConfig, RunConfig, TrainingConfig
from jaxqmix.env import sensing
from jaxqmix.env.base import Environment, Return, ReturnMission
from jaxqmix.env.features import Feature
from jaxqmix.env.mission import CoverageMission
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.reward import TERMS, Term
from jaxqmix.env.symmetry import Vector
from jaxqmix.env.urban_grid import Parts, UrbanGrid
from jaxqmix.evaluation import evaluator
from jaxqmix.rollout import auto_reset, begin, fly_episodes
from jaxqmix.training import make_trainer
from jaxqmix.types import ASCEND, Observation, Timestep, pytree_dataclass, replace


@dataclasses.dataclass(frozen=True)
class Rendezvous(Environment):
    """Two agents each press one of three buttons; only the same one, which both see, pays."""

    agents = 2
    actions = 3
    horizon = 4

    def reset(self, key, params):
        """A state is the button and the time."""
        return self.show(jax.random.randint(key, (), 0, 3), jnp.int32(0), jnp.float32(0))

    def step(self, key, state, actions, params):
        button, time = state
        return self.show(
            jax.random.randint(key, (), 0, 3), time + 1, jnp.all(actions == button) / 4
        )

    def show(self, button, time, reward):
        seen = jax.nn.one_hot(jnp.stack([button, button]), 3)
        observation = Observation(seen, jnp.ones((2, 3), bool), seen[0])
        over = time >= self.horizon
        return (button, time), Timestep(observation, reward, jnp.bool_(False), over, {})


class Presses:
    """A policy that always presses the first button."""

    def initial_hidden_state(self):
        return ()

    def __call__(self, key, state, timestep, hidden_state):
        return jnp.zeros(2, jnp.int32), hidden_state


SMALL = RunConfig(
    learner=LearnerConfig(hidden=16, layers=1, mixing_width=4, learning_rate=0.01, minibatches=8),
    training=TrainingConfig(swarms=32, rollout=4, env_steps=32 * 4 * 60, epsilon_decay_steps=4000),
)


def test_another_environment_trains_and_evaluates():
    """Nothing of the training loop knows a city; the own world is 25 lines."""
    env = Rendezvous()
    assert env.observation_spec().agents.shape == (2, 3) and env.action_spec().shape == (2,)
    trainer = make_trainer(SMALL, env=env)
    state, metrics = trainer.iterate(trainer.init(0), np.int32(60))
    assert set(metrics.episodes) == {"return", "length", "episodes", "flown"}
    fly = evaluator(env, trainer.policy, batch=16)
    found, _ = fly(state.learner.parameters["agent"], 0, 16)
    assert found["return"].mean() > 0.95  # a third of the buttons by chance: 0.11
    assert found["return_over_time"].shape == (16, 5) and not found["return_over_time"][:, 0].any()
    with pytest.raises(ConfigError, match="env = Rendezvous is not allowed: it records no"):
        jax.eval_shape(lambda key: fly_episodes(key[None], env, Climber(), 1), jax.random.key(0))


def test_a_fixed_world_is_one_key_of_programs(city_block, rough):
    """Equal to itself alone: two fixed worlds never share a program that holds one of them."""
    env = UrbanGrid(city_block, rough)
    one, other = (env.fixed(env.draw_params(jax.random.key(seed))) for seed in (0, 1))
    programs = {one: "of one"}  # hashable, and found again
    assert programs[one] == "of one" and other not in programs
    assert one.draw_params(jax.random.key(5)).packet_loss == one.params.packet_loss


def test_no_swarm_waits_for_ever():
    """Eight wait, and one at a time begins anew: each is served in its turn by chance."""
    env, policy = Rendezvous(), Presses()
    swarms = begin(jax.random.split(jax.random.key(0), 8), env, policy)
    waiting = replace(swarms, done=jnp.arange(8) != 3)
    reset = jax.jit(lambda key: auto_reset(key, waiting, env, policy, 1).done)
    served = np.stack([~reset(key) for key in jax.random.split(jax.random.key(1), 60)])
    assert (served.sum(axis=1) == 2).all() and served[:, 3].all()
    assert served.any(axis=0).all()
    everybody = auto_reset(jax.random.key(2), waiting, env, policy, 8)
    assert not everybody.done.any()
    kept = [jax.tree.leaves(jax.tree.map(lambda leaf: leaf[3], s)) for s in (waiting, everybody)]
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_a_run_in_another_world_is_like_any_other(tmp_path):
    """Trained, resumed, loaded and evaluated by the public functions, which ask for the world."""
    env, config = Rendezvous(), SMALL.replace(**{"evaluation.episodes": 16})
    config = config.replace(**{"evaluation.final_episodes": 16, "training.env_steps": 128 * 60})
    report = jaxqmix.train(config, tmp_path / "run", quiet=True, env=env)
    assert report["success"] == {"return": True} and "coverage" not in report
    assert (tmp_path / "run" / "curves.png").is_file()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["world"] == "Rendezvous" and settings["env"]["horizon"] == env.horizon
    with pytest.raises(ConfigError, match="trained in Rendezvous, a world of its own"):
        jaxqmix.load_policy(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"world = None is not allowed: .* trained in Rendezvous"):
        runner.train(config, tmp_path / "run", resume=True)
    loaded = jaxqmix.load_policy(tmp_path / "run", env=env)
    again, _ = jaxqmix.evaluate(loaded, episodes=16)
    assert again["return"] == report["return"]
    assert jaxqmix.train(config, tmp_path / "run", resume=True, quiet=True, env=env) == report
    for wrong in ({"keep": True}, {"to_horizon": True}):
        with pytest.raises(ConfigError, match="Rendezvous"):
            jaxqmix.evaluate(loaded, **wrong)


def test_own_parts_train_and_load(tmp_path, city_block, rough):
    """A term of one's own is logged, summed and rewarded; the run says that its world is."""
    config = RunConfig(env=city_block, domain=rough, learner=SMALL.learner).replace(
        **{"training.swarms": 8, "training.rollout": 5, "training.env_steps": 40,
           "evaluation.episodes": 8, "evaluation.final_episodes": 8}
    )  # fmt: skip
    high = Term("height", lambda step, config: step.after.position[:, 2].mean(), 1, 0.001)
    env = jaxqmix.make(config, parts=Parts(terms=(*TERMS, high)))
    report = jaxqmix.train(config, tmp_path / "run", quiet=True, env=env)
    assert report["reward_height"] > 0 and set(report["success"]) == {
        "collision_rate", "return", "coverage"
    }  # fmt: skip
    loaded = jaxqmix.load_policy(tmp_path / "run", env=env)
    assert loaded.env == env and loaded.config.world == "UrbanGrid"
    drier = loaded.under(loaded.config.replace(**{"domain.packet_loss": 0.0}))
    assert drier.env.parts == env.parts and drier.env.domain.packet_loss == (0.0, 0.0)
    with pytest.raises(ConfigError, match="trained in UrbanGrid, a world of its own"):
        jaxqmix.load_policy(tmp_path / "run")


@pytest.mark.parametrize(
    "parts, word",
    [
        (Parts(terms=(*TERMS, TERMS[0])), "terms = area"),
        (Parts(terms=(Term("height", lambda step, config: 0.0, 1),)), "weight of height"),
        (Parts(features=(Feature("pose", 1, lambda seen: None, "", ""),)), "features = pose"),
        (Parts(features=(Feature("own", 2, lambda s: s.observed, "", ""),)), "feature own"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, word, city_block):
    with pytest.raises(ConfigError, match=word):
        env = jaxqmix.make(city_block, parts=parts)
        params = jax.eval_shape(env.draw_params, jax.random.key(0))
        state, _ = jax.eval_shape(env.reset, jax.random.key(0), params)
        actions = jnp.zeros(env.agents, jnp.int32)
        jax.eval_shape(env.step, jax.random.key(0), state, actions, params)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["drones", "sampled"]
)
@dataclasses.dataclass(frozen=True)
class Chance:
    """Actions by a softmax over scores that are linear in what an agent sees; the log-probability
    of those chosen is kept for the learner, by way of the hidden state."""

    weights: jax.Array  # [D, A]
    drones: int
    sampled: bool

    def initial_hidden_state(self):
        return jnp.zeros(self.drones)

    def kept(self, hidden_state):
        return hidden_state

    def __call__(self, key, state, timestep, hidden_state):
        chances = log_chances(self.weights, timestep.observation)
        actions = jax.random.categorical(key, chances) if self.sampled else chances.argmax(-1)
        return actions, jnp.take_along_axis(chances, actions[:, None], axis=1)[:, 0]


def log_chances(weights, observation):
    return jax.nn.log_softmax(jnp.where(observation.available, observation.agents @ weights, -1e9))


@pytree_dataclass
class Weights:
    """State of `PolicyGradient`."""

    parameters: dict
    ema: dict


class PolicyGradient:
    """Another learner in twenty lines: one clipped step of PPO from each rollout (Schulman et al.
    2017, "Proximal Policy Optimization Algorithms", section 3)."""

    metrics = ("loss",)

    def __init__(self, config, features, actions, **sizes):
        self.rate, self.shape = config.learning_rate, (features, actions)

    def init(self, key):
        weights = {"agent": jnp.zeros(self.shape)}
        return Weights(weights, jax.tree.map(jnp.copy, weights))

    def exploring(self, learned, drones, epsilon):
        return Chance(learned.parameters["agent"], drones, True)

    def greedy(self, agent, drones, symmetries):
        return Chance(agent, drones, False)

    def update(self, key, learned, batch):
        seen = jax.tree.map(lambda leaf: leaf[:-1], batch.observation)
        gain = (batch.reward - batch.reward.mean())[..., None]

        def loss(weights):
            chances = log_chances(weights, seen)
            chosen = jnp.take_along_axis(chances, batch.actions[..., None], axis=-1)[..., 0]
            ratio = jnp.exp(chosen - batch.kept)
            return -jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain).mean()

        value, slope = jax.value_and_grad(loss)(learned.parameters["agent"])
        weights = {"agent": learned.parameters["agent"] - self.rate * slope}
        return Weights(weights, jax.tree.map(jnp.copy, weights)), {"loss": value}


@pytest.mark.parametrize("mode", ["online", "replay"])
def test_another_learner_is_one_class(mode):
    """The loop keeps what its policy says of every step, and flies its greedy policy."""
    config = SMALL.replace(**{"training.mode": mode, "learner.learning_rate": 2.0,
                              "replay.batch": 32, "replay.warmup": 32})  # fmt: skip
    trainer = make_trainer(config, env=Rendezvous(), learner=PolicyGradient)
    state, metrics = trainer.iterate(trainer.init(0), np.int32(60))
    assert set(metrics.learner) == {"loss"} and np.isfinite(metrics.learner["loss"])
    found, _ = evaluator(Rendezvous(), trainer.policy, batch=16)(state.learner.ema["agent"], 0, 16)
    assert found["return"].mean() > 0.95


class HighFlight(CoverageMission):
    """Another mission, in ten lines: over when all drones fly high; counts the steps that takes."""

    names = ("return",)
    progress = "return"

    def complete(self, state):
        return jnp.all(state.position[:, 2] >= self.config.max_altitude - 0.1)

    def init(self, timestep):
        return ReturnMission().init(timestep)

    def update(self, statistics, before, after, timestep, params):
        return Return(statistics.length + 1, statistics.total_reward - 1)

    def metrics(self, statistics):
        return ReturnMission().metrics(statistics)

    def bounds(self, state, params):
        return {}


class Climber:
    """Everybody climbs."""

    def initial_hidden_state(self):
        return ()

    def __call__(self, key, state, timestep, hidden_state):
        return jnp.full(state.position.shape[0], ASCEND), hidden_state


def test_another_mission_ends_and_counts_as_it_says(city_block, rough):
    config = dataclasses.replace(city_block, right_of_way=False)
    env = UrbanGrid(config, rough, parts=Parts(mission=HighFlight))
    assert isinstance(UrbanGrid(EnvConfig()).mission, CoverageMission)
    flown, _ = jax.jit(lambda keys: fly_episodes(keys, env, Climber()))(
        jax.random.split(jax.random.key(0), 8)
    )
    climbs = (config.max_altitude - config.min_altitude) / config.climb
    assert (np.asarray(flown["return"]) < 0).all()
    assert (-np.asarray(flown["return"])).min() >= climbs // 2
    assert (-np.asarray(flown["return"]) < config.horizon).any()


def east_side(key, position, radius, visibility, start, config):
    """The mask of a camera that looks to the east."""
    whole = sensing.footprint_mask(position, radius, start, config)
    return whole & ~sensing.footprint_mask(position.at[0].add(-radius), radius, start, config)


def test_an_own_sensor_sees_what_it_says(city_block, rough):
    env = UrbanGrid(city_block, rough, parts=Parts(sensor=sensing.Sensor(east_side)))
    key = jax.random.key(5)
    params = env.draw_params(key)
    half, whole = (
        jax.jit(world.reset)(key, params)[0] for world in (env, UrbanGrid(city_block, rough))
    )
    np.testing.assert_array_equal(half.position, whole.position)
    assert 0 < half.seen < whole.seen
    left = sensing.unpack_unseen(half.unseen, city_block)
    assert np.all(np.asarray(left) >= np.asarray(sensing.unpack_unseen(whole.unseen, city_block)))


def near(altitude, visibility):
    """The radius of a camera that sees as far from everywhere."""
    return jnp.broadcast_to(jnp.float32(60), jnp.broadcast_shapes(altitude.shape, visibility.shape))


def test_an_own_sensor_reaches_as_far_as_it_says(city_block, rough):
    """What can be covered, the limit, the drone's own footprint and what it expects follow."""
    sensor = dataclasses.replace(
        sensing.SENSORS["footprint"],
        radius=near,
        gain=lambda *given: tuple(2 * value for value in sensing.window_gain(*given)),
    )
    env = UrbanGrid(city_block, rough, parts=Parts(sensor=sensor))
    key = jax.random.key(5)
    params = env.draw_params(key)
    state, timestep = jax.jit(env.reset)(key, params)
    centres = np.stack(np.meshgrid(*(np.arange(n) for n in (13, 21)), indexing="ij"), -1) + 0.5
    away = np.linalg.norm(centres[:, :, None] * 20 - np.asarray(state.position)[:, 1::-1], axis=-1)
    seen = ~np.asarray(sensing.unpack_unseen(state.unseen, city_block))
    assert (seen >= (away < 60 - 1e-3).any(axis=-1)).all()
    limit = env.mission.bounds(state, params)["limit"]
    cells = 0.9 * float(state.city.coverable) - float(state.seen)
    expected = cells / (4 * 2 * 60 / 20 * (1 - float(params.packet_loss)))
    assert float(limit) == pytest.approx(expected, rel=1e-5)
    told = feature_slices(city_block)
    pose = np.asarray(timestep.observation.agents)[:, told["pose"]]
    np.testing.assert_allclose(pose[:, 3], 60 / city_block.max_footprint, rtol=1e-6)
    plain = UrbanGrid(
        city_block, rough, parts=Parts(sensor=dataclasses.replace(sensor, gain=sensing.window_gain))
    )
    doubled = np.asarray(timestep.observation.agents)[:, told["information_gain"]]
    single = np.asarray(jax.jit(plain.reset)(key, params)[1].observation.agents)
    np.testing.assert_allclose(doubled, 2 * single[:, told["information_gain"]], rtol=1e-6)
    far = dataclasses.replace(sensor, radius=lambda altitude, visibility: 200 + 0 * altitude)
    with pytest.raises(ConfigError, match=r"Sensor.radius = 200.0 .* at most 124 m"):
        UrbanGrid(city_block, rough, parts=Parts(sensor=far))


def test_an_own_feature_is_one_record(city_block, rough):
    """It stands behind the others, turns with the world, and trains like them."""

    def to_the_middle(seen):
        middle = jnp.array([seen.config.city_width, seen.config.city_length]) / 2
        return (middle - seen.observed[:, :2]) / middle

    own = Feature("to_the_middle", 2, to_the_middle, "where the middle is", "", turns=(Vector(0),))
    env = UrbanGrid(city_block, rough, parts=Parts(features=(own,)))
    plain = UrbanGrid(city_block, rough)
    keys = jax.random.split(jax.random.key(3))
    params = env.draw_params(keys[0])
    seen, before = (
        jax.jit(world.reset)(keys[1], params)[1].observation.agents for world in (env, plain)
    )
    np.testing.assert_array_equal(seen[:, :-2], before)
    assert (np.abs(seen[:, -2:]) < 1.2).all() and env.features == plain.features + 2
    table = env.symmetries()
    np.testing.assert_array_equal(table.sign[:, -2:].prod(axis=1), plain_vector_signs(table))


def plain_vector_signs(table):
    """What the symmetries do to the wind's signs, the seventh and eighth number."""
    return table.sign[:, 6:8].prod(axis=1)
