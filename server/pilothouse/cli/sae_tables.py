"""What `pilothouse sae` prints: an SAE's facts, its measures, and its features with their examples."""

from collections.abc import Container
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilothouse.steering import Sae

MEASURES = {
    "tokens": "{:,}",
    "explained_variance": "{:.4f}",
    "l0": "{:.2f}",
    "dead_share": "{:.2%}",
    "mse": "{:.4g}",
}


def print_sae(sae: Sae) -> None:
    """Name, digest, format, place, size, and whether features can be read and clamped."""
    console = Console()
    console.print(f"{sae.name}  {sae.digest}", highlight=False, markup=False, soft_wrap=True)
    facts = {
        "format": sae.format,
        "model": sae.model,
        "layer": sae.layer,
        "width": sae.d_in,
        "features": sae.d_sae,
        "architecture": sae.architecture,
        "activation": sae.activation,
        "read and clamp": "yes" if sae.why_not_read is None else f"no: {sae.why_not_read}",
        "max_act": "-" if sae.max_acts is None else f"known for {int((sae.max_acts > 0).sum())} features",
    }
    for key, value in facts.items():
        console.print(f"  {key}: {value if value is not None else '-'}", highlight=False, markup=False, soft_wrap=True)


def print_measures(report: dict[str, Any]) -> None:
    """The measures of a report (`finish_folder`), one row for each side."""
    table = Table("texts", *(name.replace("_", " ") for name in MEASURES))
    for side in ("train", "held_out"):
        figures = (text.format(report[side][name]) for name, text in MEASURES.items())
        table.add_row(side.replace("_", " "), *figures)
    Console().print(table)


def print_features(labels: dict[str, Any], wanted: Container[int], most: int | None) -> None:
    """The wanted features of ``labels.json``, those with a name first, then by frequency, at most so many; with `most`
    None every example is shown, else the strongest one."""
    features = [feature for feature in labels["features"] if feature["feature"] in wanted]
    features.sort(key=lambda feature: (feature["name"] is None, -feature["frequency"]))
    table = Table("feature", "name", "fires", "activation", "example")
    for feature in features[:most]:
        shown = feature["examples"][: None if most is None else 1]
        for i, example in enumerate(shown):
            first = [str(feature["feature"]), feature["name"] or "-", f"{feature['frequency']:.3%}"]
            table.add_row(
                *(Text(cell) for cell in (first if i == 0 else ("", "", ""))),
                Text(f"{example['activation']:.3f}"),
                _in_context(example),
            )
    Console().print(table)


def _in_context(example: dict[str, Any]) -> Text:
    before, token, after = (example[part].replace("\n", "\\n") for part in ("before", "token", "after"))
    return Text.assemble(before[-40:], (token, "bold reverse"), after[:20])
