"""Which device and precision suit this machine, and how much memory was used."""

import sys
from pathlib import Path

import torch

from tiramisu.errors import ConfigError


def default_device() -> torch.device:
    """Return cuda, mps or cpu, the first there is."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_device(name: str | None) -> torch.device:
    """Return the device of a name, or the best there is.

    Raises:
        ConfigError: there is no such device here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def fast_bf16(device: torch.device) -> bool:
    """Tell whether bfloat16 is faster than float32 on a device: it has bf16 matrix or dot-product instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def default_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware has it, else float32."""
    return torch.bfloat16 if fast_bf16(device) else torch.float32


def peak_memory_mib() -> int | None:
    """Return the largest resident memory that this process has had, in MiB; none where the system does not tell."""
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))  # macOS counts bytes, Linux KiB
