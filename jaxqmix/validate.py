"""`jaxqmix validate`: does everything work on this machine? Eleven checks of a tiny mission."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import checkify
from jax.flatten_util import ravel_pytree
from rich.console import Console as Terminal
from rich.markup import escape
from rich.table import Table

from jaxqmix import checkpoints
from jaxqmix.compilation import jit
from jaxqmix.config import (
    EnvConfig,
    LearnerConfig,
    ReplayConfig,
    RunConfig,
    TrainingConfig,
)
from jaxqmix.env import dynamics, sensing
from jaxqmix.env.observation import agent_features
from jaxqmix.env.urban_grid import checked_actions, mission_env
from jaxqmix.federated import door
from jaxqmix.federated.aggregate import make_aggregator
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.rounds import Server, begin_server, receive
from jaxqmix.learner import replay as replay_store
from jaxqmix.learner.targets import lambda_returns
from jaxqmix.learner.update import LearnerState, QLearner, compute_targets, td_loss
from jaxqmix.rollout import Swarms
from jaxqmix.training import (
    Trainer,
    TrainState,
    learn,
    make_parts,
    make_trainer,
    sequence_shapes,
)
from jaxqmix.types import ACTIONS, FREE, HOVER, Sequences, State, Timestep, replace

MISSION = RunConfig(
    preset="validate",
    env=EnvConfig(drones=2, city_width=400.0, city_length=320.0, horizon=20, no_fly_zones=1),
    learner=LearnerConfig(hidden=16, mixing_width=4, minibatches=2),
    replay=ReplayConfig(capacity=32, warmup=16, batch=8),
    training=TrainingConfig(env_steps=480, swarms=8, rollout=5, epsilon_decay_steps=200),
)
"""Small enough to compile in seconds; not square, so that swapped axes show."""
REPLAY_MISSION = replace(MISSION, training=replace(MISSION.training, mode="replay"))
FEDERATION = FederationConfig(
    sites=4, per_round=4, minimum=3, aggregate="median", hostile=1, norm_cap=100.0
)
TOLERANCE = 1e-4
"""Compiled and eager floats may differ by this share of the largest of an array."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Parts:
    """What the checks share: built when first used, compiled once."""

    compiled = staticmethod(jit)

    @cached_property
    def online(self) -> Trainer:
        """The trainer of mode `online`."""
        return make_trainer(MISSION)

    @property
    def learner(self) -> QLearner:
        """The learner of mode `online`."""
        return cast(QLearner, self.online.learner)

    @cached_property
    def step(self) -> Callable:
        """The compiled env step of one swarm."""
        return jit(self.online.env.step)

    @cached_property
    def learn(self) -> Callable:
        """The compiled update of mode `replay`: (seed, learner's state, store, sequences)."""
        _, learner = make_parts(REPLAY_MISSION, axis=None)

        def call(seed: int, learned: LearnerState, store: Any, sequences: Sequences) -> tuple:
            keys = jax.random.split(jax.random.key(seed))
            return learn(keys, learned, store, sequences, learner, REPLAY_MISSION)

        return jit(call)

    @cached_property
    def receive(self) -> Callable:
        """The compiled end of a federated round: (server, updates, weight, arrived)."""
        rule = make_aggregator(FEDERATION)

        def call(server: Server, updates: Any, weight: Any, arrived: Any) -> tuple:
            key, age = jax.random.key(0), jax.numpy.zeros(len(arrived), jax.numpy.int32)
            return receive(key, server, updates, weight, arrived, age, FEDERATION, rule)

        return jit(call)

    @cached_property
    def swarm(self) -> Swarms:
        """One swarm at the start of an episode, as NumPy arrays."""
        return jax.tree.map(lambda leaf: leaf[0], jax.device_get(self.begin().swarms))

    @cached_property
    def sequence_shapes(self) -> Sequences:
        """The shapes of a rollout's sequences."""
        return sequence_shapes(MISSION, self.online.state_shapes.swarms)

    def begin(self, seed: int = 0) -> TrainState:
        """A state before the first rollout."""
        return self.online.init(seed)

    def save(self, run: Path, state: TrainState) -> None:
        """Writes a checkpoint."""
        writer = checkpoints.Checkpoints(run, MISSION, begun=0)
        writer.save("latest", 1, state)


def expect(condition: Any, reason: str) -> None:
    """Raises `AssertionError` with the reason unless the condition holds."""
    if not condition:
        raise AssertionError(reason)


def expect_finite(tree: Any, what: str) -> None:
    """Raises `AssertionError` when a float of a tree is infinite or not a number."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    bad = sum(leaf.size - np.isfinite(leaf).sum() for leaf in leaves if leaf.dtype.kind == "f")
    expect(bad == 0, f"{bad} numbers of {what} are infinite or not a number")


def expect_shape(array: Any, shape: tuple[int, ...], what: str) -> None:
    """Raises `AssertionError` naming both shapes when they differ."""
    expect(array.shape == shape, f"{what} has shape {array.shape} and should have {shape}")


def distance(first: Any, second: Any) -> float:
    """The largest difference between two trees' arrays, as a share of each array's largest."""

    def of_leaves(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max(initial=0.0) / max(np.abs(b).max(initial=0.0), 1.0))

    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return float(np.max([of_leaves(a, b) for a, b in pairs]))  # unlike `max`, minds NaN


def same(first: Any, second: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def check_device(parts: Parts) -> str:
    """JAX finds a device, it computes, and it is the GPU where there is one."""
    devices = jax.devices()
    matrix = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        product = parts.compiled(lambda m: m @ m)(matrix)
    expect(distance(product, matrix @ matrix) < TOLERANCE, "a matrix product comes out wrong")
    kind = devices[0].platform
    idle = kind == "cpu" and NVIDIA_DRIVER.exists() and "JAX_PLATFORMS" not in os.environ
    expect(not idle, "this machine has an NVIDIA GPU, but JAX runs on the CPU")
    return f"{len(devices)} x {devices[0].device_kind} ({kind}), JAX {jax.__version__}"


def check_environment(parts: Parts) -> str:
    """One episode of random available actions keeps the rules of the world."""
    config, first = MISSION.env, parts.swarm
    generator = np.random.default_rng(0)

    def choose(state: State, timestep: Timestep) -> np.ndarray:
        available = timestep.observation.available
        scores = np.where(available, generator.random(available.shape), -1)
        return scores.argmax(axis=1).astype(np.int32)

    check = checkify.checkify(jax.jit(lambda actions: checked_actions(actions, config)))
    for action, known in ((0, True), (HOVER, True), (99, False), (-1, False)):
        error, _ = check(np.full(config.drones, action, np.int32))
        expect((error.get() is None) == known, f"an action of {action} is judged wrongly")
    code = dynamics.obstruction(first.state.city, first.state.position, config)
    expect((np.asarray(code) == FREE).all(), "a drone starts where it must not be")
    coverage, total = first.timestep.metrics["coverage"], 0.0
    expect(0 < coverage <= 1, f"coverage begins at {coverage:.2f}")
    for number, (state, timestep) in enumerate(fly(parts, choose), 1):
        expect_finite((timestep, state.position), f"env step {number}")
        place, size = state.position[:, :2], (config.city_width, config.city_length)
        expect(
            ((place >= 0) & (place < np.array(size))).all(),
            f"a drone left the city in step {number}",
        )
        now = timestep.metrics["coverage"]
        expect(coverage <= now <= 1, f"coverage fell in step {number}")
        expect(state.time == number, f"the clock shows {state.time} after {number} env steps")
        coverage, total = now, total + float(timestep.reward)
    ended = timestep.terminated | timestep.truncated
    expect(ended, f"the episode goes on after its time limit of {config.horizon} env steps")
    expect(total < 1.2, f"the episode returns {total:.2f}, more than a perfect one")
    return f"an episode of {number} env steps: coverage {coverage:.0%}, return {total:.2f}"


def fly(parts: Parts, choose: Callable) -> Iterator[tuple[State, Timestep]]:
    """Flies an episode to its end, or to the time limit; yields every step's outcome."""
    state, timestep, params = parts.swarm.state, parts.swarm.timestep, parts.swarm.params
    for number in range(MISSION.env.horizon):
        actions, key = choose(state, timestep), jax.random.key(number)
        state, timestep = jax.device_get(parts.step(key, state, actions, params))
        yield state, timestep
        if timestep.terminated or timestep.truncated:
            return


def check_agent(parts: Parts) -> str:
    """Parameters are finite and varied, copies are equal, and agents choose available actions."""
    learner = jax.device_get(parts.begin().learner)
    expect_finite(learner.parameters, "the initial parameters")
    kernel = learner.parameters["agent"]["dense_0"]["kernel"]
    expect(np.std(kernel) > 1e-3, "all initial weights are the same")
    expect(same(learner.parameters, learner.target), "the target network is not a copy")
    expect(same(learner.parameters, learner.ema), "the EMA is not a copy")
    swarm = parts.swarm
    policy = parts.online.policy(learner.parameters["agent"])
    hidden_state = policy.initial_hidden_state()
    actions, _ = policy(jax.random.key(0), swarm.state, swarm.timestep, hidden_state)
    available = np.asarray(swarm.timestep.observation.available)
    chosen = available[np.arange(len(available)), np.asarray(actions)]
    expect(chosen.all(), "the untrained agent chooses an unavailable action")
    count = sum(leaf.size for leaf in jax.tree.leaves(learner.parameters))
    return f"{count:,} parameters of agent and mixer"


def check_online(parts: Parts) -> str:
    """One rollout and learner update of mode `online` change the weights."""
    state = parts.begin()
    before = jax.device_get(state.learner.parameters)
    state, metrics = jax.device_get(parts.online.iterate(state, 1))
    learner = metrics.learner
    expect_finite((state.learner.parameters, learner["loss"]), "an online training step")
    expect(learner["gradient_norm"] > 0, "the gradient is zero")
    for name, old in before.items():
        expect(
            not same(state.learner.parameters[name], old), f"the {name}'s weights did not change"
        )
    expect(state.iterations == 1, f"the counter shows {state.iterations} rollouts after one")
    return f"loss {learner['loss']:.3f}, gradient norm {learner['gradient_norm']:.2f}"


def check_replay(parts: Parts) -> str:
    """The store fills, and learning from it begins when it is warm."""
    learned = jax.device_get(parts.begin().learner)
    before = learned.parameters
    store = replay_store.empty(parts.sequence_shapes, REPLAY_MISSION.replay.capacity)
    generator, swarms = np.random.default_rng(0), REPLAY_MISSION.training.swarms
    for rollouts in (1, 2):
        sequences = random_sequences(generator, parts.sequence_shapes)
        learned, store, metrics = jax.device_get(parts.learn(rollouts, learned, store, sequences))
        expect(
            store.size == rollouts * swarms,
            f"the store holds {store.size} sequences after {rollouts} rollouts of {swarms} swarms",
        )
        changed, warm = (
            not same(learned.parameters, before),
            store.size >= REPLAY_MISSION.replay.warmup,
        )
        expect(warm or not changed, "the weights changed before the store was warm")
        expect(changed or not warm, "the weights did not change although the store is warm")
    expect_finite((learned.parameters, metrics), "a replay training step")
    return f"loss {metrics['loss']:.3f} from {store.size} stored sequences"


def check_shapes(parts: Parts) -> str:
    """Every array of a rollout, of the agent, the mixer and the targets has its shape."""
    env, learner = mission_env(MISSION), parts.learner
    shapes = parts.sequence_shapes
    steps, swarms = MISSION.training.rollout, MISSION.training.swarms
    drones, features = MISSION.env.drones, env.features
    observation = shapes.observation
    expect_shape(observation.agents, (steps + 1, swarms, drones, features), "the observation")
    expect_shape(
        observation.available, (steps + 1, swarms, drones, env.actions), "the mask of actions"
    )
    expect_shape(shapes.actions, (steps, swarms, drones), "the array of actions")
    expect_shape(shapes.reward, (steps, swarms), "the reward")
    expect(
        agent_features(replace(MISSION.env, drones=20)) == features,
        "an observation's size depends on the number of drones",
    )
    learned = jax.eval_shape(learner.init, jax.random.key(0))
    agent, mixer = learned.parameters["agent"], learned.parameters["mixer"]
    values, _ = jax.eval_shape(learner.agent, agent, observation.agents, shapes.hidden_state)
    expect_shape(values, (steps + 1, swarms, drones, env.actions), "the agent's output")
    chosen = jax.ShapeDtypeStruct(values.shape[:-1], values.dtype)
    actions = jax.ShapeDtypeStruct(chosen.shape, shapes.actions.dtype)
    team = jax.eval_shape(learner.mixer, mixer, chosen, chosen, actions, observation.state)
    expect_shape(team, (steps + 1, swarms, 1), "the mixer's output")
    targets = jax.eval_shape(
        lambda learned, batch: compute_targets(
            learned, batch, learner.agent, learner.mixer, learner.config
        ),
        learned,
        shapes,
    )
    expect_shape(targets, (steps, swarms, 1), "the array of targets")
    return f"{features} features for each drone, state of {observation.state.shape[-1]}"


def check_checkpoint(parts: Parts) -> str:
    """What is saved is loaded again bit for bit: the whole state, and the policy."""
    state = parts.begin()
    expected = jax.device_get(state)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        parts.save(run, state)
        _, restored = checkpoints.restore(run, parts.online)
        _, policy, _ = checkpoints.load(run)
        size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    for name, value in vars(expected).items():
        expect(same(getattr(restored, name), value), f"{name} comes back changed")
    expect(same(policy, expected.learner.ema), "the policy comes back changed")
    return f"a checkpoint of {size / 1e3:,.0f} kB comes back bit for bit"


def check_loop(parts: Parts) -> str:
    """A whole small training: it counts, explores less and less, and its policy flies."""
    state = parts.begin()
    state, metrics = jax.device_get(parts.online.iterate(state, MISSION.iterations))
    expect(
        state.iterations == MISSION.iterations,
        f"{state.iterations} rollouts of {MISSION.iterations} counted",
    )
    expect_finite((state.learner.parameters, state.learner.ema), "the trained parameters")
    least = MISSION.budget // MISSION.env.horizon // 2
    expect(metrics.ended >= least, f"only {metrics.ended:.0f} episodes ended")
    epsilon = float(metrics.epsilon)
    expect(abs(epsilon - MISSION.training.epsilon_end) < 1e-6, f"epsilon ended at {epsilon:.2f}")
    policy = parts.online.policy(state.learner.ema["agent"])
    key, hidden_state = jax.random.key(0), policy.initial_hidden_state()
    *_, (_, timestep) = fly(
        parts, lambda state, timestep: policy(key, state, timestep, hidden_state)[0]
    )
    expect_finite(timestep, "a flight of the trained policy")
    return (
        f"{MISSION.budget} env steps, {metrics.ended:.0f} episodes; "
        f"then a greedy flight sees {timestep.metrics['coverage']:.0%}"
    )


def check_compiled(parts: Parts) -> str:
    """Moves, looks, returns and gradients are the same compiled and operation by operation."""
    swarm, env, learner = parts.swarm, MISSION.env, parts.learner
    learned = jax.device_get(parts.begin().learner)
    generator = np.random.default_rng(0)
    batch = random_sequences(generator, parts.sequence_shapes)
    executed: Any = np.arange(env.drones, dtype=np.int32)
    air: Any = generator.normal(size=(env.drones, 2)).astype(np.float32)
    values = generator.normal(size=(*batch.reward.shape, 1)).astype(np.float32)

    def move(state: Any, params: Any) -> tuple:
        return dynamics.move(
            state.position, executed, state.obstruction, air, state.city, params, env
        )

    def look(state: Any, params: Any) -> tuple:
        away = state.position + np.array([60.0, 40.0, 0.0], np.float32)
        return sensing.look(jax.random.key(0), state.unseen, away, params.visibility, env)

    def returns(values: jax.Array, batch: Sequences) -> jax.Array:
        flags = batch.terminated, batch.truncated
        return lambda_returns(batch.reward, *flags, values, gamma=0.9, trace=0.5)

    def gradient(learned: Any, batch: Sequences) -> Any:
        grad = jax.grad(td_loss, has_aux=True)
        return grad(learned.parameters, batch, values, learner.agent, learner.mixer)

    pieces: list[tuple[Callable, tuple]] = [
        (move, (swarm.state, swarm.params)),
        (look, (swarm.state, swarm.params)),
    ]
    pieces += [(returns, (values, batch)), (gradient, (learned, batch))]
    worst = 0.0
    # In full precision, or a GPU rounds the inputs of matrix products, here so and there so.
    with jax.default_matmul_precision("highest"):
        for function, arguments in pieces:
            compiled = jax.device_get(parts.compiled(function)(*arguments))
            with jax.disable_jit():
                eager = jax.device_get(function(*jax.tree.map(jax.numpy.asarray, arguments)))
            off = distance(compiled, eager)
            expect(off < TOLERANCE, f"{function.__name__}: compiled and eager differ by {off:.1e}")
            worst = max(worst, off)
    return f"{len(pieces)} pieces agree within {worst:.0e}"


def random_sequences(generator: np.random.Generator, shapes: Sequences) -> Sequences:
    """Sequences of random numbers, like the shapes given."""

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == bool:
            return generator.random(leaf.shape) < 0.8
        if leaf.dtype == np.int32:
            return generator.integers(0, len(ACTIONS), leaf.shape, np.int32)
        return generator.normal(size=leaf.shape).astype(np.float32)

    sequences = jax.tree.map(draw, shapes)
    sequences.observation.available[..., HOVER] = True
    return sequences


def check_determinism(parts: Parts) -> str:
    """A seed repeats a run, and another seed gives another one."""

    def train(seed: int) -> Any:
        state = parts.begin(seed)
        for _ in range(2):
            state, _ = parts.online.iterate(state, 1)
        return jax.device_get(state.learner.parameters)

    first, again, other = train(0), train(0), train(1)
    expect(not same(first, other), "two seeds give the same run")
    if same(first, again):
        return "a seed repeats bit for bit"
    off = distance(first, again)
    # Sums of a GPU come in any order.
    rounding = jax.default_backend() != "cpu" and off < TOLERANCE
    expect(rounding, f"the same seed gives weights that differ by {off:.1e}")
    return "a seed repeats up to rounding; train with --deterministic for bit for bit"


def check_federated(parts: Parts) -> str:
    """Three sites train from the same weights, a fourth sends NaN: it is turned away, and the
    median of the others' updates moves the global policy."""
    first = jax.device_get(parts.begin().learner)
    start, _ = ravel_pytree(first.parameters)
    updates = []
    for seed in range(FEDERATION.sites - 1):
        state = replace(jax.device_get(parts.begin(seed)), learner=first)
        state, _ = parts.online.iterate(parts.online.place(state), 1)
        updates.append(np.asarray(ravel_pytree(state.learner.parameters)[0] - start))
    expect_finite(updates, "an honest site's update")
    expected = start + np.median(updates, axis=0)
    sent = np.stack([*updates, np.full_like(updates[0], np.nan)])
    server = begin_server(first.parameters, FEDERATION, make_aggregator(FEDERATION))
    weight, arrived = np.ones(len(sent), np.float32), np.ones(len(sent), bool)
    server, admitted, verdicts = jax.device_get(parts.receive(server, sent, weight, arrived))
    expect(not admitted[-1], "an update of NaN was let in")
    expect(verdicts.infinite[-1], "an update of NaN was turned away for another reason")
    expect(admitted[:-1].all(), "an honest site's update was turned away")
    expect_finite(server.weights, "the global policy")
    off = distance(ravel_pytree(server.weights)[0], expected)
    expect(off < TOLERANCE, f"the global policy is off the median of the sites by {off:.1e}")
    name, arrays = "agent.dense_0.kernel", door.leaves_by_name(first.parameters)
    spoilt = arrays | {name: np.full_like(arrays[name], np.nan)}
    try:
        door.check(spoilt, first.parameters)
        refusal = ""
    except door.UpdateRefused as error:
        refusal = str(error)
    expect(name in refusal, f"a message with NaN in {name} was not refused by name")
    return f"{len(updates)} sites make one policy; a fourth, which sends NaN, is turned away"


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    run: Callable[[Parts], str]  # returns what it found, raises with the reason of a failure
    fix: str


REINSTALL = "pip install --force-reinstall . brings every library to a version that fits"
CHECKS = (
    Check(
        "device",
        check_device,
        'pip install ".[cuda]" for an NVIDIA GPU, ".[tpu]" for a TPU; nvidia-smi must list the '
        "GPU; JAX_PLATFORMS=cpu uses the CPU on purpose",
    ),
    Check(
        "environment",
        check_environment,
        f"{REINSTALL}; after changes in jaxqmix/env, pytest tests/test_env_reference.py says more",
    ),
    Check(
        "agent initialisation",
        check_agent,
        f"{REINSTALL}; after changes in jaxqmix/learner, pytest tests/test_learner.py says more",
    ),
    Check(
        "online training step",
        check_online,
        f"{REINSTALL}; after changes in jaxqmix/learner, pytest tests/test_targets.py says more",
    ),
    Check(
        "replay training step",
        check_replay,
        "train with --mode online meanwhile; after changes in learner/replay.py, "
        "pytest tests/test_training.py says more",
    ),
    Check(
        "tensor shapes",
        check_shapes,
        "correct the function that the reason names; jaxqmix/types.py gives every shape",
    ),
    Check(
        "save and load",
        check_checkpoint,
        "free disk space, or set TMPDIR to a folder that you may write; "
        "pip install --upgrade orbax-checkpoint",
    ),
    Check(
        "mini training loop",
        check_loop,
        "the rows above point at the part that is broken; mend the first of them first",
    ),
    Check(
        "federated round",
        check_federated,
        f"{REINSTALL}; after changes in jaxqmix/federated, pytest tests/test_federated_rules.py "
        "says more",
    ),
    Check(
        "jit against eager",
        check_compiled,
        "pip install --upgrade jax jaxlib (0.10.2 compiles wrongly), and delete the folder of "
        "compiled programs (JAXQMIX_CACHE, else jaxqmix in the user's cache folder)",
    ),
    Check(
        "determinism",
        check_determinism,
        "on a GPU train with --deterministic; after changes, look for a random number without a "
        "key of its own",
    ),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    check: Check
    passed: bool
    text: str  # what was found, or the reason
    seconds: float


def outcomes(checks: tuple[Check, ...], parts: Parts) -> Iterator[Outcome]:
    """Runs the checks one after the other; one that fails stops none of the rest."""
    for check in checks:
        started = time.perf_counter()
        try:
            passed, text = True, check.run(parts)
        except Exception as error:  # A broken part may raise anything.
            passed, text = False, reason(error)
        yield Outcome(check, passed, text, time.perf_counter() - started)


def reason(error: Exception) -> str:
    """An error in one line, with its kind where the check did not word it."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if type(error) is AssertionError and text else f"{type(error).__name__}: {text}"


def validate(checks: tuple[Check, ...] = CHECKS, terminal: Terminal | None = None) -> int:
    """Runs every check and prints a table of what passed and failed.

    Returns:
      The exit code: 0 when all passed, else 1.
    """
    terminal = terminal or Terminal()
    table = Table(title="jaxqmix on this machine")
    table.add_column("check")
    table.add_column("result")
    table.add_column("s", justify="right")
    table.add_column("found, or reason and fix", overflow="fold")
    failures = 0
    with terminal.status("first check") as status:
        for number, outcome in enumerate(outcomes(checks, Parts()), 1):
            check, text = outcome.check, escape(outcome.text)
            if not outcome.passed:
                text = f"[red]{text}[/]\n[bold]fix:[/] {escape(check.fix)}"
            failures += not outcome.passed
            verdict = "[green]pass[/]" if outcome.passed else "[bold red]fail[/]"
            table.add_row(check.name, verdict, f"{outcome.seconds:.1f}", text)
            status.update(f"{number} of {len(checks)} checks done")
    terminal.print(table)
    if failures:
        terminal.print(f"[bold red]{failures} of {len(checks)} checks failed[/]")
        return 1
    terminal.print(f"[bold green]all {len(checks)} checks passed[/]: try jaxqmix train quick")
    return 0
