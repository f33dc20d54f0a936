"""Are several seeds faster in one program than one after the other?

Env steps/s of training, over all seeds, without evaluations: `jaxqmix train PRESET --seeds 5`
against five runs in a row. Both programs are compiled first, and measured in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import compile_program, parse, parser, save, seconds_of, show, versus

from jaxqmix.config import RunConfig
from jaxqmix.presets import PRESETS, preset
from jaxqmix.training import make_trainer


def training(config: RunConfig, seeds: int | None, iterations: int) -> tuple[Callable, dict]:
    """What trains so many iterations more and returns env steps/s over all seeds; and what its
    program needs."""
    trainer = make_trainer(config, seeds)
    program, needs = compile_program(trainer.iterate, trainer.state_shapes, iterations)
    state = trainer.init(0 if seeds is None else range(seeds))
    work = (seeds or 1) * iterations * config.iteration_steps

    def train() -> Any:
        nonlocal state
        state, metrics = program(state, iterations)
        return metrics

    return lambda: work / seconds_of(train), needs


def main() -> None:
    """Measures, shows and saves."""
    line = parser(__doc__, repeats=5)
    line.add_argument("--presets", nargs="+", default=["quick"], choices=list(PRESETS))
    line.add_argument("--seeds", type=int, default=5)
    line.add_argument("--scale", default="cpu", choices=["cpu", "gpu"])
    line.add_argument("--env-steps", type=int, default=20_000, help="of a seed in a measurement")
    arguments = parse(line)
    rows = []
    for name in arguments.presets:
        config = preset(name, arguments.scale)
        iterations = max(1, arguments.env_steps // config.iteration_steps)
        together, needs = training(config, arguments.seeds, iterations)
        alone, needed = training(config, None, iterations)
        found = versus(together, alone, arguments.repeats)
        rows.append(
            {"preset": name, "seeds": arguments.seeds, "scale": arguments.scale}
            | {"side_by_side": found["ours"], "in_a_row": found["theirs"], "times": found["times"]}
            | {"compile_seconds": [needs["compile_seconds"], needed["compile_seconds"]]}
        )
    show(
        f"Training {arguments.seeds} seeds, env steps/s over all of them; in brackets the spread",
        ("preset", "side by side", "in a row", "times as fast", "compile (s)"),
        [
            (row["preset"], *(spread(row[what]) for what in ("side_by_side", "in_a_row")),
             spread(row["times"], "{:.2f}"),
             " and ".join(f"{seconds:.0f}" for seconds in row["compile_seconds"]))
            for row in rows
        ],
    )  # fmt: skip
    save("seeds", rows, arguments.out)


def spread(figures: dict[str, float], form: str = "{:,.0f}") -> str:
    """Median, lowest and highest in words."""
    low, high = form.format(figures["lowest"]), form.format(figures["highest"])
    return f"{form.format(figures['median'])} ({low} to {high})"


if __name__ == "__main__":
    main()
