"""In which floating-point type a device runs a network best."""

from __future__ import annotations

from pathlib import Path

import torch


def inference_precision(device: torch.device | str) -> torch.dtype:
    """float16 on CUDA, bfloat16 on CPUs with instructions for it (several times faster there), else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and _processor_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def _processor_multiplies_bfloat16() -> bool:
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        # Newer versions of torch tell it on every platform.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    flags = next((line for line in description.splitlines() if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags
