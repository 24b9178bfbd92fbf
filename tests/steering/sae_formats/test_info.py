"""`pilothouse sae info` on every format."""

import json
from pathlib import Path

import pytest
from sae_support.layouts import BY_KEY, D_IN, D_SAE, LAYOUTS, Layout
from typer.testing import CliRunner

from pilothouse.cli import saes
from pilothouse.core.errors import ArtefactError
from pilothouse.steering import load_sae

EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)


@EVERY
def test_info_says_what_it_is_and_whether_it_can_be_read(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    sae = load_sae(path)
    result = CliRunner().invoke(saes.app, ["info", str(path), "--feature=3"])
    assert result.exit_code == 0, (result.output, result.exception)
    for line in (
        f"format: {sae.format}",
        f"model: {sae.model}",
        f"layer: {sae.layer}",
        f"width: {D_IN}",
        f"features: {D_SAE}",
        f"architecture: {sae.architecture}",
        f"activation: {sae.activation}",
    ):
        assert f"  {line}\n" in result.output
    wanted = "yes" if layout.reads else f"no: {sae.why_not_read}"
    assert f"  read and clamp: {wanted}\n" in result.output


@EVERY
def test_info_as_json(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    result = CliRunner().invoke(saes.app, ["info", str(path), "--json"])
    facts = json.loads(result.output)
    sae = load_sae(path)
    assert (facts["format"], facts["activation"], facts["why_not_read"]) == (
        sae.format,
        sae.activation,
        sae.why_not_read,
    )
    assert (facts["layer"], facts["d_in"], facts["d_sae"], facts["model"]) == (sae.layer, D_IN, D_SAE, sae.model)
    assert facts["config"] == dict(sae.card)


def test_examples_are_found_by_saelens_alone(tmp_path: Path) -> None:
    path = BY_KEY["gemma-scope"].write(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    result = CliRunner().invoke(saes.app, ["label", str(path), str(tmp_path / "texts.jsonl")])
    assert isinstance(result.exception, ArtefactError)
    assert "gemma-scope" in str(result.exception)
