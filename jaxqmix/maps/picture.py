"""A picture of a city map: roofs, no-fly zones, and metres along its sides."""

from __future__ import annotations

from pathlib import Path

from jaxqmix.maps.citymap import CityMap, describe_size

ZONE = "#B3123B"
GROUND = "#F2EDE1"


def draw_city(city: CityMap, out: Path, title: str = "") -> None:
    """Draws a city into a PNG, north up."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    width, length = city.size
    longest = max(width, length)
    size = (max(6 * width / longest, 4.5) + 1.4, max(6 * length / longest, 2.5) + 1.0)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(GROUND)
    roofs = np.ma.masked_equal(city.heights, 0)
    extent = (0, width, length, 0)
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.2, 1, 256)))
    image = axes.imshow(roofs, cmap=colours, vmin=0, extent=extent, interpolation="nearest")
    for x, y, radius, ceiling in city.no_fly.tolist():
        axes.add_patch(Circle((x, y), radius, fc=(0.7, 0.07, 0.23, 0.15), ec=ZONE, ls="--", lw=1.4))
        axes.text(x, y, f"no-fly\nbelow {ceiling:.0f} m", ha="center", va="center", fontsize=7,
                  color=ZONE, clip_on=True)  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(length, 0)
    axes.set_title(
        title or city.source or "city",
        loc="left",
        fontsize=11,
        weight="bold",
        pad=18,
        parse_math=False,
    )
    axes.text(0, 1.02, describe_size(city), transform=axes.transAxes, fontsize=8.5)
    axes.set_xlabel("x, to the east (m)", fontsize=9)
    axes.set_ylabel("y, to the south (m)", fontsize=9)
    axes.tick_params(labelsize=8)
    figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02).set_label("roof (m)", fontsize=8)
    figure.savefig(out, format="png", facecolor="white")
