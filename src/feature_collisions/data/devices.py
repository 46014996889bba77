"""What a device lacks, and where that is computed instead."""

import torch

CPU = torch.device("cpu")
WITHOUT_FLOAT64 = {"mps"}  # Apple's


def able(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.device:
    """`device`, or the CPU where it does not compute in `dtype`."""
    lacking = dtype == torch.float64 and device.type in WITHOUT_FLOAT64
    return CPU if lacking else device
