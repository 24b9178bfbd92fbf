"""The plots of a report: ratios with their intervals, and how the cost grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RATIOS, GROWTH = "ratios.svg", "growth.svg"
_OURS, _TARGET, _STOCK = "#1f6f8b", "#c44536", "#888888"


def draw(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Write the plots into `folder`, and return their names: of ratios, and of growth where that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in summary["throughput"] if not row["latency"]]
    names = []
    if rows:
        _ratios(folder / RATIOS, rows)
        names.append(RATIOS)
    if summary["slopes"]:
        _growth(folder / GROWTH, summary["slopes"])
        names.append(GROWTH)
    return names


def _ratios(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each scenario, a line for each comparison, its target a mark where it has one."""
    figure_of, save = _matplotlib()
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    by = {name: [row for row in rows if row["scenario"] == name][::-1] for name in scenarios}
    heights = [len(found) + 1 for found in by.values()]
    figure, axes = figure_of(
        len(scenarios),
        1,
        figsize=(8, 0.32 * sum(heights) + 0.6 * len(scenarios)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, (name, found) in zip(axes[:, 0], by.items(), strict=True):
        places = range(len(found))
        middles = [row["ratio"] for row in found]
        errors = [
            [max(row["ratio"] - row["low"], 0.0) for row in found],
            [max(row["high"] - row["ratio"], 0.0) for row in found],
        ]
        axis.axvline(1.0, color=_STOCK, linewidth=1)
        axis.errorbar(middles, places, xerr=errors, fmt="o", color=_OURS, capsize=3, markersize=4)
        marks = [(row["target"], place) for row, place in zip(found, places, strict=True) if "target" in row]
        if marks:
            axis.plot(*zip(*marks, strict=True), "|", color=_TARGET, markersize=11, markeredgewidth=2, label="target")
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)
        axis.set_yticks(list(places), [row["comparison"] for row in found], fontsize=8)
        axis.set_ylim(-0.7, len(found) - 0.3)
        axis.set_title(name, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("output tokens per second, of what stands beside (median, 95% interval)", fontsize=8)
    save(figure, path)


def _growth(path: Path, slopes: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each line, with the points that it goes through."""
    figure_of, save = _matplotlib()
    figure, axes = figure_of(1, len(slopes), figsize=(3.6 * len(slopes), 3), squeeze=False, layout="constrained")
    for axis, slope in zip(axes[0], slopes, strict=True):
        xs, ys = zip(*slope["points"], strict=True)
        axis.plot(xs, ys, "o", color=_OURS)
        axis.plot(xs, [slope["intercept"] + slope["slope"] * x for x in xs], color=_STOCK)
        axis.set_title(slope["name"], fontsize=8)
        axis.set_ylabel("µs", fontsize=8)
        axis.set_xlabel(f"{slope['slope']:.3g} {slope['unit']}", fontsize=8)
    save(figure, path)


def _matplotlib() -> tuple[Any, Any]:
    """`subplots` of a backend without a screen, and what writes a figure so that equal figures are equal files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def save(figure: Any, path: Path) -> None:
        with matplotlib.rc_context({"svg.hashsalt": "pilothouse"}):
            figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)

    return pyplot.subplots, save
