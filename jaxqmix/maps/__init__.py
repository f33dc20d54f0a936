"""Own cities: read from map files, kept in city files, flown over instead of generated ones."""

from jaxqmix.maps.citymap import (
    CityMap,
    load_cities,
    load_map,
    load_maps,
    stack,
    with_city,
    without_city,
)

__all__ = [
    "CityMap",
    "load_cities",
    "load_map",
    "load_maps",
    "stack",
    "with_city",
    "without_city",
]
