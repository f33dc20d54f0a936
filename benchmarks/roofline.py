"""How close to the machine's limits are the world's step and the update?

Measured here: copy bandwidth, and the float32 matrix rate of large products and of products as
large as the update's. Counted: the bytes that a step must read and write at least, and the
operations of the update's matrix products. The share of the limit is the time that the machine
needs for these alone over the time that the program takes. A few swarms live in the processor's
caches, which are faster than the memory that the copy measures.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from common import (
    chained,
    compile_program,
    measure,
    parse,
    parser,
    save,
    show,
    with_env,
    with_training,
)
from programs import (
    begin_program,
    exploring,
    flight_program,
    over_swarms,
    sequence_specs,
    swarm_keys,
    swarm_mesh,
)

from jaxqmix.compilation import materialise, tree_bytes
from jaxqmix.distributed import REPLICATED, SHARDED, on_each_device, place
from jaxqmix.env.features import fine_blocks, views
from jaxqmix.env.sensing import FINE_WINDOW, footprint_mask
from jaxqmix.presets import PRESETS, preset
from jaxqmix.rollout import Swarms, rollout
from jaxqmix.training import Trainer, make_trainer
from jaxqmix.types import replace

STEPS = 100
"""Steps of every swarm in one measurement of the world."""


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written on all devices, of a copy far larger than the caches."""
    devices = jax.local_device_count()
    mesh, count = swarm_mesh(devices), 2**25 if jax.default_backend() == "cpu" else 2**29
    array = over_swarms(lambda x: x, mesh)(jnp.zeros((devices, count), jnp.float32))
    program, _ = compile_program(over_swarms(lambda x: x + 1, mesh), array, donate_argnums=0)
    return 8 * array.size / measure(chained(program, array), repeats)["lowest"]


def matrix_rate(rows: int, inner: int, columns: int, repeats: int) -> float:
    """Operations per second of products [rows, inner] x [inner, columns] and back, float32.

    Every device computes its own.
    """
    devices = jax.local_device_count()
    products = max(1, int(5e9 // (rows * inner * columns)))
    there = jnp.full((inner, columns), 1 / inner)
    back = jnp.full((columns, inner), 1 / columns)

    def body(left: jax.Array, _: None) -> tuple[jax.Array, None]:
        return materialise(left @ there) @ back, None

    def multiply(left: jax.Array) -> jax.Array:
        return jax.lax.scan(body, left[0], None, products)[0][None]

    mesh = swarm_mesh(devices)
    left = over_swarms(lambda x: x, mesh)(jnp.ones((devices, rows, inner)))
    program, _ = compile_program(over_swarms(multiply, mesh), left, donate_argnums=0)
    seconds = measure(chained(program, left), repeats)["lowest"]
    return 4 * rows * inner * columns * products * devices / seconds


def world_bytes(swarms: Swarms, config: Any) -> int:
    """Bytes that one env step of one swarm must read and write at least.

    The small state, read and written; the words of the map under every footprint, read and
    written; the cells of every view, read; the timestep with its observation, written.
    """
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), swarms)
    small = tree_bytes(replace(one.state, city=None, unseen=None))
    mask = jax.eval_shape(
        lambda place: footprint_mask(place, place[0], (jnp.int32(0), jnp.int32(0)), config),
        jnp.zeros(3),
    )
    coarse = views(config)[len(fine_blocks(config)) :]
    views_read = 4 * sum((side + 1) ** 2 for _, side in coarse) + 8 * FINE_WINDOW
    per_drone = 2 * 4 * math.prod(mask.shape) + views_read + config.patch**2
    return 2 * small + tree_bytes(one.timestep) + config.drones * per_drone


def update_operations(trainer: Trainer, state_features: int) -> int:
    """Floating-point operations of the matrix products of one update (LayerNorm MLP and QMIX).

    Backward takes a product for the weights of every layer, and one for the inputs of all layers
    but the first.
    """
    config, learner, training = trainer.config, trainer.config.learner, trainer.config.training
    drones, hidden, width = config.env.drones, learner.hidden, learner.mixing_width
    first = 2 * trainer.env.features * hidden
    forward = first + 2 * hidden * (hidden * (learner.layers - 1) + trainer.env.actions + 1)
    mixer = 2 * state_features * width * (drones + 3)
    targets = drones * forward + mixer
    trained = drones * (3 * forward - first) + 2 * mixer
    return training.rollout * training.swarms * (targets + learner.epochs * trained)


def world_seconds(trainer: Trainer, repeats: int) -> tuple[float, int]:
    """Seconds of one env step of one swarm with observations, and the bytes it must move."""
    swarms = trainer.config.training.swarms
    begun = begin_program(trainer.env, swarms)[0](swarm_keys(0, swarms))
    needed = world_bytes(begun, trainer.config.env)
    call, _ = flight_program(trainer.env, begun, STEPS)
    return measure(call, repeats)["median"] / STEPS / swarms, needed


def update_seconds(trainer: Trainer, repeats: int) -> tuple[float, int]:
    """Seconds of one update on one rollout, and the operations it must do."""
    steps, mesh = trainer.config.training.rollout, trainer.mesh

    def fly(keys: jax.Array, swarms: Swarms, parameters: Any) -> Any:
        policy = exploring(trainer, parameters)
        return rollout(keys[0], swarms, policy, trainer.env, steps)[1]

    def update(carry: tuple, batch: Any) -> tuple:
        key, now = jax.random.split(carry[0])
        return key, trainer.learner.update(now, carry[1], batch)[0]

    state = trainer.init(0)
    inputs = (
        swarm_keys(0, state.swarms.done.size, mesh),
        state.swarms,
        state.learner.parameters["agent"],
    )
    spread = on_each_device(fly, mesh, (SHARDED, SHARDED, REPLICATED), sequence_specs())
    batch = compile_program(spread, *inputs)[0](*inputs)
    carry = (place(jax.random.key(1), mesh, REPLICATED), state.learner)
    spread = on_each_device(update, mesh, (REPLICATED, sequence_specs()), REPLICATED)
    program, _ = compile_program(spread, carry, batch, donate_argnums=0)
    seconds = measure(chained(lambda carry: program(carry, batch), carry), repeats)["median"]
    return seconds, update_operations(trainer, batch.observation.state.shape[-1])


def main() -> None:
    """Measures, shows and saves."""
    line = parser(__doc__, repeats=5)
    line.add_argument("--preset", default="full", choices=list(PRESETS))
    line.add_argument("--drones", type=int, help="the preset's by default")
    line.add_argument("--swarms", type=int, default=64)
    line.add_argument("--square", type=int, help="side of the large product")
    arguments = parse(line)
    config = with_training(preset(arguments.preset), swarms=arguments.swarms)
    config = with_env(config, drones=arguments.drones or config.env.drones)
    trainer, learner = make_trainer(config), config.learner
    side = arguments.square or (2048 if jax.default_backend() == "cpu" else 8192)
    rows = config.iteration_steps * config.env.drones // learner.minibatches // trainer.mesh.size
    features = trainer.env.features
    bandwidth = copy_bandwidth(arguments.repeats)
    rates = {
        f"product of {side} x {side} x {side}": matrix_rate(side, side, side, arguments.repeats),
        f"first layer, {rows} x {features} x {learner.hidden}": matrix_rate(
            rows, features, learner.hidden, arguments.repeats
        ),
    }
    step, needed = world_seconds(trainer, arguments.repeats)
    update, operations = update_seconds(trainer, arguments.repeats)
    results = [
        {"part": "world step", "limit": "copy of large arrays", "per_second": bandwidth,
         "at_least": needed, "unit": "bytes", "seconds": step}
    ] + [
        {"part": "update", "limit": limit, "per_second": rate,
         "at_least": operations, "unit": "operations", "seconds": update}
        for limit, rate in rates.items()
    ]  # fmt: skip
    for result in results:
        result["share"] = result["at_least"] / result["per_second"] / result["seconds"]
    show(
        f"{arguments.preset}, {config.env.drones} drones, {arguments.swarms} swarms",
        ("part", "at least", "limit", "G/s", "at the limit (us)", "taken (us)", "share"),
        [
            (r["part"], f"{r['at_least']:,} {r['unit']}", r["limit"], r["per_second"] / 1e9,
             r["at_least"] / r["per_second"] * 1e6, r["seconds"] * 1e6, f"{r['share']:.1%}")
            for r in results
        ],
    )  # fmt: skip
    sizes = {"preset": arguments.preset, "drones": config.env.drones, "swarms": arguments.swarms}
    save("roofline", {**sizes, "rows": results}, arguments.out)


if __name__ == "__main__":
    main()
