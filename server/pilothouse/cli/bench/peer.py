"""Another implementation under the same load, as a process of its own: it prints its tokens per second as JSON.

`transformers` generates for a batch of the same shape, without hooks and with one on every decoder block that adds a
vector to its output; repeng, where it is installed, steers the same model through its `ControlModel`.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_REPEATS = 3
NOT_INSTALLED = "not installed"
WITHOUT, HOOKS, REPENG = "transformers, no hooks", "transformers, a hook on every layer", "repeng"


def main(arguments: str) -> None:
    """arguments: JSON with model (a folder), random (whether weights are made up), dtype, batch, tokens_in and
    tokens_out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = json.loads(arguments)
    folder, dtype = Path(given["model"]), getattr(torch, given["dtype"])
    torch.manual_seed(0)
    if given["random"]:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    prompts = torch.randint(100, 2560, (given["batch"], given["tokens_in"]), device=model.device)

    def generate(tokens: int) -> float:
        """Tokens per second."""
        begin = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
            )
        made = found.shape[0] * (found.shape[1] - prompts.shape[1])
        return float(made / (time.perf_counter() - begin))

    print(json.dumps(measure(model, generate, given["tokens_out"])))


def measure(model: Any, generate: Callable[[int], float], tokens_out: int) -> dict[str, list[float] | str]:
    """Tokens per second of each repeat, by implementation; or why there are none."""
    import torch

    generate(2)
    found: dict[str, list[float] | str] = {WITHOUT: [generate(tokens_out) for _ in range(N_REPEATS)]}
    blocks = model.model.layers
    row = 0.01 * torch.randn(len(blocks), model.config.hidden_size, dtype=model.dtype, device=model.device)

    def adds(layer: int) -> Callable[[Any, Any, Any], Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return (output[0] + row[layer], *output[1:]) if isinstance(output, tuple) else output + row[layer]

        return hook

    handles = [block.register_forward_hook(adds(layer)) for layer, block in enumerate(blocks)]
    found[HOOKS] = [generate(tokens_out) for _ in range(N_REPEATS)]
    for handle in handles:
        handle.remove()
    found[REPENG] = _repeng(model, row, lambda: generate(tokens_out))
    return found


def _repeng(model: Any, rows: Any, generate: Callable[[], float]) -> list[float] | str:
    """rows: [n_layers, d_model]."""
    if importlib.util.find_spec("repeng") is None:
        return NOT_INSTALLED
    from repeng import ControlModel, ControlVector

    depth = rows.shape[0]
    directions = {layer: rows[layer].float().cpu().numpy() for layer in range(1, depth)}
    # It replaces the model's blocks in place, so `generate` runs through them.
    control = ControlModel(model, list(range(1, depth)))
    control.set_control(ControlVector(model_type=model.config.model_type, directions=directions), 1.0)
    return [generate() for _ in range(N_REPEATS)]


if __name__ == "__main__":
    main(sys.argv[1])
