"""The models that are measured: the embedded one, and published shapes with random weights.

A shape is a folder with a configuration, whose weights vLLM makes up (`--load-format dummy`), and a tokenizer: the
embedded model's, lengthened to the shape's vocabulary, since a server needs one and turns every token into text.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilothouse.cli.harbor import HARBOR_MAX_MODEL_LEN, HARBOR_NAME
from pilothouse.harbor.paths import model_dir

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROMPT_IDS = range(100, 2560)
"""What prompts are made of: token ids that every one of the models has, none of them special."""

_FAMILIES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_LEAST_CACHE = 256 << 20


@dataclass(frozen=True)
class Model:
    """A model by its configuration. config: that of Hugging Face; random: its weights are made up; max_len: the
    longest sequence that it is served with; dtype: of weights and cache."""

    key: str
    title: str
    config: Mapping[str, Any] = field(repr=False)
    random: bool = True
    max_len: int = 2048
    dtype: str = "bfloat16"

    @property
    def width(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def depth(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.dtype] * n_parameters(self.config)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of KV cache for a quarter more than so many tokens, so that nothing is preempted; at least 256 MB."""
        c = self.config
        a_token: int = 2 * self.depth * c["num_key_value_heads"] * c["head_dim"] * BYTES[self.dtype]
        return max(_LEAST_CACHE, math.ceil(1.25 * tokens) * a_token)

    def prepare(self, folder: Path) -> Path:
        """The folder that a server is given: the model's own, or one that is made below `folder`."""
        if not self.random:
            return model_dir()
        made = folder / self.key
        made.mkdir()
        (made / "config.json").write_text(json.dumps(dict(self.config)), encoding="utf-8")
        shutil.copy(model_dir() / _TOKENIZER[1], made)
        tokenizer = json.loads((model_dir() / _TOKENIZER[0]).read_text(encoding="utf-8"))
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary.update({f"~{i}": i for i in range(len(vocabulary), self.config["vocab_size"])})
        (made / _TOKENIZER[0]).write_text(json.dumps(tokenizer), encoding="utf-8")
        return made


def n_parameters(config: Mapping[str, Any]) -> int:
    """Numbers in the weights of a Llama or a Qwen3, by its configuration."""
    d, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = 2 * d + (2 * head if config["model_type"] == "qwen3" else 0)
    block = 2 * d * queries + 2 * d * keys + 3 * d * config["intermediate_size"] + norms
    tables = 1 if config["tie_word_embeddings"] else 2
    return int(tables * config["vocab_size"] * d + config["num_hidden_layers"] * block + d)


def _config(
    family: str, d: int, inner: int, depth: int, heads: tuple[int, int], vocab: int, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": [_FAMILIES[family]],
        "model_type": family,
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": depth,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 128,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 5,
        "pad_token_id": 0,
        "dtype": "bfloat16",
    }


HARBOR = Model(
    HARBOR_NAME,
    "embedded model (Harbor)",
    json.loads((model_dir() / "config.json").read_text(encoding="utf-8")),
    random=False,
    max_len=HARBOR_MAX_MODEL_LEN,
    dtype="float32",
)
SMALL = Model("qwen3-0.5b", "Qwen3-0.6B shape", _config("qwen3", 1024, 3072, 28, (16, 8), 151936, True))
QWEN_4B = Model("qwen3-4b", "Qwen3-4B shape", _config("qwen3", 2560, 9728, 36, (32, 8), 151936, True))
LLAMA_8B = Model("llama-8b", "Llama-3.1-8B shape", _config("llama", 4096, 14336, 32, (32, 8), 128256, False))
MODELS = {model.key: model for model in (HARBOR, SMALL, QWEN_4B, LLAMA_8B)}
