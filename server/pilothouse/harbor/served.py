"""How the embedded model is loaded, over HTTP and in scripts, unless told otherwise."""

NAME = "harbor"
MAX_MODEL_LEN = 1024
CACHE_BYTES = 256 << 20

SETTINGS: dict[str, str | int] = {
    "served_model_name": NAME,
    "dtype": "float32",
    "max_model_len": MAX_MODEL_LEN,
    "kv_cache_memory_bytes": CACHE_BYTES,
    "max_num_seqs": 64,
}
"""Arguments of vLLM by name."""
