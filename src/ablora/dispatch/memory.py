"""What memory a pack may take on this machine: its device's, where there is one."""

import os
import subprocess


def place_gib(processes: int) -> float | None:
    """For each of so many processes at once, in GiB: what the fullest GPU has free, over the processes that share one;
    without a GPU, a process's part of the machine's memory. None where nobody says."""
    free = free_gpu_gib()
    if free:
        return min(free) / -(-processes // len(free))
    host = host_gib()
    return None if host is None else host / processes


def host_gib() -> float | None:
    """Of this machine, in all; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def free_gpu_gib() -> list[float]:
    """Of each GPU that this process may see; empty where NVIDIA's driver knows of none.

    The driver is asked, by nvidia-smi: torch's `mem_get_info` would make a context on each GPU, which takes hundreds of
    MiB for as long as this process lives. Nothing is known of ROCm's GPUs, of parts of one (MIG), and of those whose
    memory the driver does not tell ([N/A], where it is the host's). A torch without CUDA is not noticed.
    """
    asked = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    free: dict[str, float] = {}
    for line in answer.splitlines():
        index, uuid, mib = (part.strip() for part in line.split(","))
        if mib.isdecimal():
            free[index] = free[uuid] = int(mib) / 2**10
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gib for name, gib in free.items() if name.isdecimal()]
    return [free[name] for name in map(str.strip, visible.split(",")) if name in free]
