"""Against repeng itself, where it is installed: its files, and the place at which it adds its directions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pilothouse.steering import import_vector

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def repeng() -> Any:
    """The library. It is not in the locks: it asks for NumPy 1 and uses a name that NumPy 2 has not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float_", np.float64, raising=False)
        return pytest.importorskip("repeng")


def a_control_vector(repeng: Any, layers: tuple[int, ...]) -> Any:
    directions = {layer: RNG.standard_normal(16).astype(np.float32) for layer in layers}
    return repeng.ControlVector(model_type="llama", directions=directions)


@pytest.mark.parametrize("layers", [(3, 2, 1), (0,), (7, 11)])
def test_what_repeng_writes_is_what_it_reads_is_what_is_read_here(
    repeng: Any, layers: tuple[int, ...], tmp_path: Path
) -> None:
    control = a_control_vector(repeng, layers)
    control.export_gguf(tmp_path / "v.gguf")
    vector = import_vector(tmp_path / "v.gguf")
    theirs = repeng.ControlVector.import_gguf(tmp_path / "v.gguf").directions
    assert set(vector.direction.layers) == set(theirs) == set(layers)
    for layer, row in vector.direction.layers.items():
        assert row.tolist() == theirs[layer].tolist() == control.directions[layer].tolist()
    assert vector.card["source"]["model_hint"] == "llama"


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_repeng_adds_at_the_site_of_the_same_number(repeng: Any, layer: int) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=32)).eval()
    stream: dict[int, torch.Tensor] = {}
    ids = torch.tensor([[1, 2, 3, 4]])

    def read(coefficient: float) -> dict[int, torch.Tensor]:
        controlled.set_control(control, coefficient)
        with torch.no_grad():
            controlled(input_ids=ids)
        return dict(stream)

    control = a_control_vector(repeng, (layer,))
    controlled = repeng.ControlModel(model, [layer])
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda _module, _inputs, output, number=number: stream.update({number: output}))
    plain, steered = read(0.0), read(1.0)
    for number in range(layer):
        assert torch.equal(steered[number], plain[number])
    moved = (steered[layer] - plain[layer])[0].numpy()
    np.testing.assert_allclose(moved, np.tile(control.directions[layer], (4, 1)), atol=1e-5)
