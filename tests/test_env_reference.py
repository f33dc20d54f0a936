"""The fast environment equals the plain NumPy reference, step by step, on non-square cities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference as ref

from jaxqmix.config import EnvConfig
from jaxqmix.env import observation, sensing
from jaxqmix.types import events_of

FINE_CELLS = EnvConfig(
    drones=5,
    city_width=880.0,
    city_length=600.0,
    cell_size=20.0,
    horizon=70,
    no_fly_zones=3,
    coverage_target=0.6,
)
"""30 x 44 cells of 20 m."""

WIDE_CELLS = EnvConfig(
    drones=4,
    city_width=3500.0,
    city_length=1200.0,
    cell_size=50.0,
    horizon=60,
    no_fly_zones=4,
    radio_range=900.0,
    neighbours=2,
    patch=3,
)
"""24 x 70 cells of 50 m."""

CASES = {
    "fine cells": (FINE_CELLS, 80, 14),
    "wide cells": (WIDE_CELLS, 64, 12),
    "city block": (None, 80, 14),
    "probabilistic": ("probabilistic", 64, 8),
}
"""Config, steps and swarms."""


@pytest.fixture(scope="module", params=CASES)
def flights(request, fly, take, city_block):
    """A config, random flights in its cities, and per swarm its weather and worlds over time."""
    config, steps, swarms = CASES[request.param]
    if config is None:
        config = city_block
    elif config == "probabilistic":
        config = dataclasses.replace(city_block, sensing="probabilistic")
    data = fly(config, steps, swarms, seed=7, thorough=config is city_block)
    plain = []
    for swarm in range(swarms):
        weather = ref.weather_of(take(data["params"], swarm))
        no_fly = data["states"].city.no_fly[swarm, 0].astype(float)
        coverable = ref.coverable_cells(no_fly, weather.visibility, config)
        over_time = [
            ref.world_of(take(data["states"], swarm, time), unseen, coverable)
            for time, unseen in enumerate(data["unseen"][swarm])
        ]
        plain.append((weather, over_time))
    return config, data, plain


def test_flights_meet_every_rule(flights):
    """The comparisons below see losses, delays, obstacles, conflicts and ends."""
    config, data, _ = flights
    events, link = events_of(data["timesteps"]), data["states"].link
    assert np.any(link == ref.LOST) and np.any(link == ref.DELAYED)
    for flags in (events.building_hit, events.violation, events.border):
        assert np.any(flags)
    if config.cell_size == 20:
        assert np.any(events.conflict)
    assert np.any(data["timesteps"].truncated)
    if config.cell_size == 20 and config.sensing == "footprint":
        assert np.any(data["timesteps"].terminated)


def test_moves_and_links(flights, take):
    """Executed actions, links, positions, obstructions and conflicts of every step."""
    config, data, plain = flights
    swarms, steps = data["commands"].shape[:2]
    close_calls = 0
    for swarm in range(swarms):
        weather, over_time = plain[swarm]
        events = events_of(take(data["timesteps"], swarm))
        for time in range(steps):
            before, after = over_time[time], over_time[time + 1]
            city = (before.heights, before.no_fly)
            executed, link = ref.deliver(
                data["chances"][swarm, time],
                data["commands"][swarm, time],
                before.last_action,
                weather,
            )
            np.testing.assert_array_equal(after.last_action, executed)
            np.testing.assert_array_equal(events.executed[time + 1], executed)
            np.testing.assert_array_equal(after.link, link)
            gusts = data["air"][swarm, time, :, :2]
            place, code = ref.move(*city, before.position, executed, gusts, weather, config)
            flags = (events.building_hit, events.violation, events.border)
            hit, violation, border = (flag[time + 1] for flag in flags)
            fast_code = np.select([hit, violation, border], [ref.BUILDING, ref.NO_FLY, ref.BORDER])
            for drone in range(config.drones):
                target = before.position[drone] + ref.displacement(executed[drone], config)
                same = np.max(np.abs(after.position[drone] - place[drone])) < 2e-3
                if not same or fast_code[drone] != code[drone]:
                    drifted = target + ref.drift(gusts[drone], weather, config)
                    options = [
                        ref.possible_obstructions(*city, p, config) for p in (target, drifted)
                    ]
                    assert max(map(len, options)) > 1, (swarm, time, drone)
                    close_calls += 1
            np.testing.assert_array_equal(after.heights, before.heights)
            assert after.time == before.time + 1

            conflict = events.conflict[time + 1]
            strict, loose = (
                ref.conflicts(before.position, after.position, slack)
                for slack in (-ref.CLOSE_CALL, ref.CLOSE_CALL)
            )
            near = ref.conflicts(before.position, after.position)
            close = strict != loose
            np.testing.assert_array_equal(conflict[~close], near[~close])
            close_calls += np.sum(conflict != near)
    assert close_calls <= 0.001 * swarms * steps * config.drones


def test_obstructions(flights, take):
    """What obstructs every action from every place reached, and the mask of available actions."""
    config, data, plain = flights
    swarms, steps = data["commands"].shape[:2]
    close_calls, narrowed = 0, 0
    for swarm in range(swarms):
        _, over_time = plain[swarm]
        for time in range(steps + 1):
            world = over_time[time]
            city = (world.heights, world.no_fly)
            fast = data["states"].obstruction[swarm, time]
            slow = ref.obstructed_actions(*city, world.position, config)
            for drone, action in np.argwhere(fast != slow):
                target = world.position[drone] + ref.displacement(action, config)
                assert fast[drone, action] in ref.possible_obstructions(*city, target, config)
                close_calls += 1
            repeats = ref.safe_repeats(*city, world.position, config)
            clear = ref.collision_free_actions(world.position, world.last_action, config)
            mask = [ref.available_actions(*one) for one in zip(fast, repeats, clear, strict=True)]
            available = data["timesteps"].observation.available[swarm, time]
            assert not (available & (fast != ref.FREE)).any()
            close_calls += np.any(available != np.array(mask), axis=1).sum()
            narrowed += (available < (fast == ref.FREE)).sum()
    assert narrowed > 100
    assert close_calls <= 0.001 * swarms * steps * config.drones


def test_sensing_and_counts(flights, take):
    """Coverable cells, what each look sees, and every number kept about it."""
    config, data, plain = flights
    swarms = len(plain)
    rim_cells, compared = 0, 0
    for swarm in range(swarms):
        weather, over_time = plain[swarm]
        states = take(data["states"], swarm)
        unseen = over_time[0].coverable
        assert states.city.coverable[0] == unseen.sum()
        for time, world in enumerate(over_time):
            if config.sensing == "footprint":
                unseen = ref.look(unseen, world.position, weather.visibility, config)
                rims = [ref.rim(p, weather.visibility, config) for p in world.position]
                rim = np.any(rims, axis=0)
                np.testing.assert_array_equal(world.unseen[~rim], unseen[~rim])
                rim_cells += np.sum(world.unseen[rim] != unseen[rim])
                compared += world.unseen.size
            else:
                chance = [ref.chance_to_see(p, weather.visibility, config) for p in world.position]
                out_of_sight = np.max(chance, axis=0) <= 0
                assert not np.any(world.unseen & ~unseen)
                np.testing.assert_array_equal(world.unseen[out_of_sight], unseen[out_of_sight])
            unseen = world.unseen

            assert states.seen[time] == world.seen
            assert states.perimeter[time] == ref.perimeter(world.unseen)
            assert np.bitwise_count(states.unseen.words[time]).sum() == world.unseen.sum()
            levels = zip(states.unseen.coarse, ref.coarse_sides(config), strict=True)
            for level, block in levels:
                counts = ref.block_counts(world.unseen, block)
                margin = sensing.coarse_margin(block, config)
                np.testing.assert_array_equal(level[time], np.pad(counts, margin))
    assert rim_cells <= 1e-4 * max(compared, 1)


def test_rewards_and_ends(flights, take):
    """Team reward, coverage, terminated and truncated of every step."""
    config, data, plain = flights
    swarms, steps = data["commands"].shape[:2]
    bonuses = 0
    for swarm in range(swarms):
        _, over_time = plain[swarm]
        timesteps = take(data["timesteps"], swarm)
        events = events_of(timesteps)
        weights = vars(take(data["params"].reward, swarm))
        coverable = int(over_time[0].coverable.sum())
        sides = [ref.perimeter(world.unseen) for world in over_time]
        assert timesteps.reward[0] == 0
        assert not timesteps.terminated[0] and not timesteps.truncated[0]
        for time in range(1, steps + 1):
            before, after = over_time[time - 1], over_time[time]
            seen_before = 0 if time == 1 else before.seen
            flags = [events.building_hit[time], events.violation[time]]
            reward = ref.team_reward(
                newly_seen=after.seen - seen_before,
                growth=sides[time] - (0 if time == 1 else sides[time - 1]),
                seen_before=seen_before,
                seen_after=after.seen,
                coverable=coverable,
                time=time,
                executed=after.last_action,
                conflict=events.conflict[time],
                code=np.select(flags, [ref.BUILDING, ref.NO_FLY]),
                weights=weights,
                config=config,
            )
            np.testing.assert_allclose(timesteps.reward[time], reward, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                timesteps.metrics["coverage"][time], after.coverage, rtol=1e-6
            )
            ended = (bool(timesteps.terminated[time]), bool(timesteps.truncated[time]))
            assert ended == ref.ends(after.seen, coverable, time, config)
            bonuses += ref.bonus_term(seen_before, after.seen, coverable, time, config) > 0
    if config.rows == 13 and config.sensing == "footprint":
        assert bonuses >= 3


def test_observations(flights, take):
    """Every drone's groups, and the mixer's state, at reset and at every seventh step."""
    config, data, plain = flights
    swarms, steps = data["commands"].shape[:2]
    table = observation.feature_slices(config)
    for swarm in range(swarms):
        weather, over_time = plain[swarm]
        observed = take(data["timesteps"].observation, swarm)
        for time in [0, *range(1 + swarm % 7, steps + 1, 7)]:
            world = over_time[time]
            noise = data["air"][swarm, time - 1, :, 2:] if time else data["first_noise"][swarm]
            noise = noise.astype(float)
            drones = ref.observe(world, weather, noise, config)
            for drone, groups in enumerate(drones):
                assert list(groups) == list(table)
                at_edge = ref.near_cell_edge(*world.position[drone, :2], config)
                fast = observed.agents[time, drone]
                assert len(fast) == sum(part.size for part in groups.values())
                for name, part in groups.items():
                    if at_edge and (
                        name in ("pose", "obstacles", "information_gain", "perimeter_change")
                        or name.startswith(("unseen", "voronoi"))
                    ):
                        continue
                    if name == "available":
                        part = world_available(data, swarm, time, drone)
                    if name == "two_step_clearance":
                        check_clearance(fast[table[name]], world, drone, config)
                        continue
                    if name == "information_gain":
                        found = [fast[table[name]], fast[table["perimeter_change"]]]
                        growth = np.array(groups["perimeter_change"])
                        check_looks_ahead(*found, growth, world, weather, drone, config)
                    if name in ("information_gain", "perimeter_change"):
                        continue
                    np.testing.assert_allclose(
                        fast[table[name]],
                        part,
                        rtol=1e-4,
                        atol=1e-4,
                        err_msg=f"{name}, swarm {swarm}, time {time}, drone {drone}",
                    )
            np.testing.assert_allclose(
                observed.state[time], ref.mixer_state(world, config), rtol=1e-5, atol=1e-5
            )


def check_clearance(found, world, drone, config):
    """Moves that may be made twice, within what is too close to tell."""
    possible = ref.repeatable(world.heights, world.no_fly, world.position[drone], config)
    assert all(bool(flag) in both for flag, both in zip(found, possible, strict=True))


def check_looks_ahead(gain, change, growth, world, weather, drone, config):
    """What looks ahead would see, within what is too close to tell."""
    looks = (
        ref.looks_ahead(world.unseen, world.position[drone], weather.visibility, config, slack)
        for slack in (-ref.CLOSE_CALL, ref.CLOSE_CALL)
    )
    least, most = (np.array(ref.gain(each, config)) for each in looks)
    assert (least - 1e-4 <= gain).all() and (gain <= most + 1e-4).all()
    clear = least == most
    assert clear.sum() >= len(clear) // 2
    np.testing.assert_allclose(change[clear], growth[clear])


def world_available(data, swarm, time, drone):
    """The mask of available actions, which `test_obstructions` holds to the reference."""
    return data["timesteps"].observation.available[swarm, time, drone]
