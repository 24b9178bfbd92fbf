"""The architectures of the matrix: how a tiny random model of each is made, and where it needs something of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine_support.harness import Reference, blocks_of
from engine_support.tiny import SHAPE

from matrix_support.architectures_battery import LOGPROB_TOLERANCE

Settings = Mapping[str, Any]

COMMON: Settings = {**SHAPE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
OWN = object()
"""For a setting of `COMMON` that is not this family's: it has its own, or none."""

GPT: Settings = {"n_embd": 64, "n_layer": 4, "n_head": 2, "n_positions": 512}
EXPERTS: Settings = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS: Settings = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED_EXPERT: Settings = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
WINDOW: Settings = {"sliding_window": 8}
GRANITE: Settings = {
    "residual_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.2,
}
MAMBA: Settings = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_expand": 2}
ALTERNATING: Settings = {"layer_types": ["mamba", "attention"] * 2}


MLA: Settings = {
    **SHARED_EXPERT,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    # The only width of the cache that vLLM's kernels for the CPU know.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 64,
}


def _exact_gelu(reference: Reference) -> None:
    """vLLM computes GELU itself where Hugging Face's BLOOM takes an approximation: up to 9e-4 of a readout's spread."""
    for block in reference.blocks:
        block.mlp.gelu_impl = torch.nn.GELU()


def _coarse_xielu(reference: Reference) -> None:
    """vLLM keeps the two numbers of Apertus' activation in bfloat16: up to 4e-3 of a readout's spread."""
    for block in reference.blocks:
        block.mlp.act_fn.bfloat16()


def _any_time_step(reference: Reference) -> None:
    """vLLM leaves out the least time step of these families: up to 6e-3 of a readout's spread."""
    for module in reference.model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))


@dataclass(frozen=True)
class Architecture:
    """One row.

    family: as in the names of Hugging Face's classes; settings: of the configuration, beside `COMMON`; options: of
    vLLM's engine; sample: whether it is also tried where time is short; adapt: what Hugging Face computes otherwise
    than vLLM, in the reference; not_spelled_out: why the start-up self-test has no reference for it; not_run: in words
    of vLLM's own, why it does not run here; refusal: in words of ours, why no site can be placed in it.
    """

    name: str
    family: str
    settings: Settings = field(default_factory=dict)
    config: str = ""
    model: str = ""
    options: Settings = field(default_factory=dict)
    sample: bool = False
    tolerance: float = LOGPROB_TOLERANCE
    adapt: Callable[[Reference], None] = lambda reference: None
    not_spelled_out: str | None = None
    not_run: str | None = None
    refusal: str | None = None

    def save(self, folder: Path) -> None:
        """A random model, the same in every run."""
        import transformers

        settings = {name: value for name, value in {**COMMON, **self.settings}.items() if value is not OWN}
        config = getattr(transformers, self.config or f"{self.family}Config")(**settings)
        torch.manual_seed(7)
        model = getattr(transformers, self.model or f"{self.family}ForCausalLM")(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name.lower() and parameter.dim() == 1:
                    # As made they are all alike, and a norm that is left out or taken twice would hardly show.
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(folder)

    def reference(self, folder: Path) -> Reference:
        """Hugging Face, attention spelled out: the fused one leaves out what some families need."""
        reference = Reference(folder, attn_implementation="eager")
        # Where vLLM then runs the same class, it decorates that for everyone in this process.
        reference.model.base_model.do_not_compile = True
        assert len(blocks_of(reference.model)) == COMMON["num_hidden_layers"]
        self.adapt(reference)
        return reference


def _transformers(name: str, family: str, settings: Settings | None = None, sample: bool = False) -> Architecture:
    """Served by vLLM's backend for any model of Hugging Face's, though vLLM has code of its own for it."""
    return Architecture(name, family, settings or {}, options={"model_impl": "transformers"}, sample=sample)


ROWS: tuple[Architecture, ...] = (
    Architecture("Llama", "Llama", sample=True),
    Architecture("Mistral", "Mistral", WINDOW),
    Architecture("Ministral 3", "Ministral3"),
    Architecture("Mixtral", "Mixtral", LOCAL_EXPERTS),
    Architecture("Qwen2", "Qwen2"),
    Architecture("Qwen2-MoE", "Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    Architecture("Qwen3", "Qwen3"),
    Architecture("Qwen3-MoE", "Qwen3Moe", EXPERTS, sample=True),
    Architecture("Gemma", "Gemma"),
    Architecture("Gemma 2", "Gemma2", {**WINDOW, "query_pre_attn_scalar": 32}, sample=True),
    Architecture("Gemma 3", "Gemma3", {**WINDOW, "query_pre_attn_scalar": 32}, config="Gemma3TextConfig"),
    Architecture(
        "Gemma 4",
        "Gemma4",
        {**WINDOW, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 32},
        config="Gemma4TextConfig",
    ),
    Architecture("Phi", "Phi", {"num_key_value_heads": 2}),
    Architecture("Phi-3", "Phi3"),
    Architecture("GPT-2", "GPT2", {**GPT, "n_inner": 128}, model="GPT2LMHeadModel", sample=True),
    Architecture("GPT-J", "GPTJ", {**GPT, "rotary_dim": 16}),
    Architecture("GPT-NeoX", "GPTNeoX", {"num_key_value_heads": OWN}),
    Architecture("GPT-BigCode", "GPTBigCode", {**GPT, "n_inner": 128}),
    Architecture("OPT", "OPT", {"ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.2}),
    Architecture(
        "OPT, norms behind",
        "OPT",
        {"ffn_dim": 128, "word_embed_proj_dim": 32, "init_std": 0.2, "do_layer_norm_before": False},
    ),
    Architecture("Falcon", "Falcon", {"head_dim": OWN, "num_key_value_heads": OWN}),
    Architecture("BLOOM", "Bloom", {"n_layer": 4, "n_head": 2}, adapt=_exact_gelu),
    Architecture("StableLM", "StableLm", sample=True),
    Architecture("OLMo", "Olmo"),
    Architecture("OLMo 2", "Olmo2"),
    Architecture("OLMo 3", "Olmo3", WINDOW),
    Architecture("OLMoE", "Olmoe", EXPERTS),
    Architecture("Granite", "Granite", GRANITE),
    Architecture("Granite-MoE", "GraniteMoe", {**GRANITE, **LOCAL_EXPERTS}),
    Architecture(
        "Granite hybrid",
        "GraniteMoeHybrid",
        {**GRANITE, **LOCAL_EXPERTS, **MAMBA, **ALTERNATING, "shared_intermediate_size": 64},
        not_spelled_out="MambaMixer2",
    ),
    # By default their logits are divided by 16, and nothing moves them much.
    Architecture("Cohere", "Cohere", {"logit_scale": 1.0}),
    # What the window's length means differs between vLLM and Hugging Face by one: this one is never reached.
    Architecture("Cohere 2", "Cohere2", {"sliding_window": 128, "logit_scale": 1.0}),
    Architecture("Nemotron", "Nemotron"),
    Architecture(
        "Nemotron-H",
        "NemotronH",
        {
            "hybrid_override_pattern": "M*M-",
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
        },
        adapt=_any_time_step,
        not_spelled_out="MambaMixer2",
    ),
    Architecture("EXAONE 4", "Exaone4", {**WINDOW, "sliding_window_pattern": 4}),
    Architecture("EXAONE-MoE", "ExaoneMoe", {**EXPERTS, **SHARED_EXPERT, **WINDOW, "num_shared_experts": 1}),
    Architecture("GLM", "Glm"),
    Architecture("GLM-4", "Glm4"),
    Architecture("GLM-4-MoE", "Glm4Moe", {**EXPERTS, **SHARED_EXPERT}),
    Architecture("StarCoder 2", "Starcoder2"),
    Architecture("SmolLM 3", "SmolLM3"),
    Architecture("Seed-OSS", "SeedOss"),
    Architecture("Arcee", "Arcee"),
    Architecture("Helium", "Helium"),
    Architecture("BitNet", "BitNet"),
    Architecture("Apertus", "Apertus", adapt=_coarse_xielu),
    Architecture("ERNIE 4.5", "Ernie4_5"),
    Architecture(
        "ERNIE 4.5-MoE",
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
    ),
    Architecture("HunYuan", "HunYuanDenseV1"),
    Architecture("InternLM 3", "Llama", options={"hf_overrides": {"architectures": ["InternLM3ForCausalLM"]}}),
    Architecture(
        "MiniCPM 3",
        "MiniCPM3",
        {
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "num_key_value_heads": 2,
            # By default the logits are divided by a quarter of the width.
            "dim_model_base": 64,
        },
    ),
    # By Hugging Face's code in vLLM, with vLLM's latent attention: vLLM's own code for the family gives other numbers
    # than Hugging Face, unsteered and without Pilothouse too.
    Architecture(
        "DeepSeek-V2",
        "DeepseekV2",
        {**MLA, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False},
        options={"model_impl": "transformers"},
        not_spelled_out="MLAAttention",
    ),
    Architecture(
        "DeepSeek-V3",
        "DeepseekV3",
        {**MLA, "q_lora_rank": 32, "topk_method": "noaux_tc"},
        options={"model_impl": "transformers"},
        not_spelled_out="MLAAttention",
    ),
    Architecture("gpt-oss", "GptOss", {**LOCAL_EXPERTS, **WINDOW}),
    Architecture(
        "Llama 4",
        "Llama4",
        {**LOCAL_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 128, "attention_chunk_size": 128},
        config="Llama4TextConfig",
    ),
    Architecture("Falcon-H1", "FalconH1", {**MAMBA, "mamba_d_ssm": 128}, not_spelled_out="MambaMixer2"),
    Architecture(
        "Zamba 2",
        "Zamba2",
        {
            "mamba_d_state": 16,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "attention_head_dim": 64,
            "num_key_value_heads": 2,
        },
        adapt=_any_time_step,
        not_spelled_out="MambaMixer2",
    ),
    _transformers("Transformers backend", "Qwen3", sample=True),
    _transformers("Transformers backend, MoE", "Qwen3Moe", EXPERTS),
    # A family of its own: rows that vLLM serves with this backend leave its marks on their classes in the process that
    # ran them, Arcee's among them.
    Architecture(
        "Transformers backend, compiled", "Cwm", options={"model_impl": "transformers", "enforce_eager": False}
    ),
    Architecture(
        "Jamba",
        "Jamba",
        {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        not_run="has no attribute 'selective_scan_fwd'",
    ),
    Architecture("Mamba", "Mamba", {"state_size": 16}, not_run="has no attribute 'selective_scan_fwd'"),
    Architecture(
        "Qwen3-Next",
        "Qwen3Next",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        },
        not_run="CPU GDN attention requires BF16",
    ),
    Architecture(
        "Gemma 3n",
        "Gemma3n",
        {
            **WINDOW,
            "vocab_size_per_layer_input": 512,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        config="Gemma3nTextConfig",
        refusal="Gemma3nDecoderLayer carries 4 streams beside one another",
    ),
    Architecture(
        "BERT",
        "Bert",
        {"head_dim": OWN, "num_key_value_heads": OWN},
        model="BertModel",
        refusal="a pooling model: only decoder models generate text",
    ),
    Architecture(
        "Whisper",
        "Whisper",
        {
            "d_model": 64,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "decoder_start_token_id": 3,
            "head_dim": OWN,
            "num_key_value_heads": OWN,
            "num_attention_heads": OWN,
        },
        model="WhisperForConditionalGeneration",
        refusal="an encoder-decoder model",
    ),
)
