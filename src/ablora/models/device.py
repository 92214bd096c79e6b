"""Where a base lives and its runs compute. One process trains on one device."""

import torch


def device() -> torch.device:
    """The first GPU that this process may see (`CUDA_VISIBLE_DEVICES`; ROCm's builds of torch use the same name), or
    else the CPU. With `CUDA_VISIBLE_DEVICES=` a process computes on the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
