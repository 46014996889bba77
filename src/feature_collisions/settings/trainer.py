"""Check the arguments of `trainer` against the machine."""

import os
from typing import Any

import torch

from ..errors import SettingError

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PRECISIONS = ("32-true", "64-true", *MIXED, "auto")
_ARGUMENTS = ("accelerator", "devices", "precision", "strategy", "num_nodes", "benchmark",
              "deterministic", "detect_anomaly", "profiler")  # fmt: skip
_ALIASES = {"32": "32-true", "64": "64-true"}


def check_trainer(trainer: dict[str, Any]) -> dict[str, Any]:
    """Check the Trainer's arguments and add defaults.

    Raises:
        SettingError: if an argument is not allowed, or the machine lacks the precision or the
            number of devices.
    """
    for name, value in trainer.items():
        if name not in _ARGUMENTS:
            raise SettingError(
                f"trainer.{name}",
                value,
                "is not an argument of a search",
                f"known are {', '.join(_ARGUMENTS)}; stop says how long it runs",
            )
    trainer = {"accelerator": "auto", "devices": 1, "precision": "32-true"} | trainer
    gpus = torch.cuda.device_count()
    accelerator = trainer["accelerator"] = _accelerator(trainer["accelerator"], gpus)
    trainer["precision"] = _precision(str(trainer["precision"]), accelerator, gpus)
    _check_devices(trainer, gpus)
    if trainer.setdefault("strategy", "auto") not in ("auto", "ddp"):
        raise SettingError(
            "trainer.strategy",
            trainer["strategy"],
            "must be auto or ddp, which shares the corners out over the devices",
        )
    if trainer.get("num_nodes", 1) != 1:
        raise SettingError(
            "trainer.num_nodes",
            trainer["num_nodes"],
            "a search stays on one machine",
            "sweep over machines with -m hydra/launcher=submitit_slurm",
        )
    if len(device_ids(trainer)) == 1:
        trainer["strategy"] = "auto"
    return trainer


def single_device(trainer: dict[str, Any]) -> torch.device | None:
    """The device of an unchecked `trainer`; None if it has several."""
    checked = check_trainer(trainer)
    return devices_of(checked)[0] if len(device_ids(checked)) == 1 else None


def where(device: torch.device) -> dict[str, Any]:
    """The Trainer's arguments for `device`."""
    if device.type == "cuda":
        return {"accelerator": "gpu", "devices": [device.index or 0]}
    return {"accelerator": "mps" if device.type == "mps" else "cpu", "devices": 1}


def devices_of(trainer: dict[str, Any]) -> list[torch.device]:
    """The devices of checked arguments; a CPU is repeated for each process."""
    ids, accelerator = device_ids(trainer), trainer["accelerator"]
    if accelerator in ("gpu", "cuda"):
        return [torch.device("cuda", each) for each in ids]
    return [torch.device("mps" if accelerator == "mps" else "cpu")] * len(ids)


def device_ids(trainer: dict[str, Any]) -> list[int]:
    """Indices of the devices that a search or an evaluation runs on."""
    devices = trainer["devices"]
    return list(map(int, devices)) if isinstance(devices, list) else list(range(devices))


def _accelerator(asked: Any, gpus: int) -> str:
    """Lightning's name of the kind of device; `auto` becomes the available one."""
    if asked not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise SettingError("trainer.accelerator", asked, "must be one of auto, cpu, gpu, mps")
    found = str(asked)
    if found == "auto":
        found = "gpu" if gpus else "mps" if _apple() else "cpu"
    _check_there(found, gpus)
    return found


def _precision(asked: str, accelerator: str, gpus: int) -> str:
    """Lightning's name of the precision; `auto` is kept if the first gradient must decide."""
    precision = _ALIASES.get(asked, asked)
    if precision not in _PRECISIONS:
        raise SettingError(
            "trainer.precision", precision, f"must be one of {', '.join(_PRECISIONS)}"
        )
    if precision == "16-mixed" and accelerator == "cpu":
        raise SettingError(
            "trainer.precision",
            "16-mixed",
            "this device, the CPU, has no float16 arithmetic",
            "use 32-true, or bf16-mixed to save memory",
        )
    if precision == "64-true" and accelerator == "mps":
        raise SettingError(
            "trainer.precision",
            "64-true",
            "this device, Apple's GPU, has no float64 arithmetic",
            "use 32-true, or trainer.accelerator=cpu",
        )
    if precision == "bf16-mixed" and accelerator in ("gpu", "cuda"):
        _check_bfloat16(gpus)
    return "32-true" if precision == "auto" and not bfloat16_is_fast(accelerator) else precision


def _apple() -> bool:
    return torch.backends.mps.is_available()


def _check_there(accelerator: str, gpus: int) -> None:
    """Raise SettingError if a GPU is missing, or PyTorch cannot use it."""
    if accelerator in ("gpu", "cuda") and not gpus:
        built = "it was built without CUDA" if torch.version.cuda is None else "none is visible"
        raise SettingError(
            "trainer.accelerator",
            accelerator,
            f"PyTorch sees no GPU here ({built})",
            "choose auto or cpu",
        )
    if accelerator == "mps" and not _apple():
        raise SettingError(
            "trainer.accelerator",
            "mps",
            "PyTorch sees no GPU of Apple's here",
            "choose auto or cpu",
        )


def bfloat16_is_fast(accelerator: str) -> bool:
    """Whether a device has native bfloat16 arithmetic; without, bfloat16 takes ten times as long.

    Args:
        accelerator: Lightning's name of it, not `auto`.
    """
    if accelerator == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return accelerator in ("gpu", "cuda") and torch.cuda.is_bf16_supported(
        including_emulation=False
    )


def _check_bfloat16(gpus: int) -> None:
    if gpus and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingError(
            "trainer.precision",
            "bf16-mixed",
            f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic",
            "use 16-mixed or 32-true",
        )


def _check_devices(trainer: dict[str, Any], gpus: int) -> None:
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if devices in ("auto", -1, "-1"):
        devices = trainer["devices"] = max(1, gpus) if accelerator in ("gpu", "cuda") else 1
    there = {"cpu": os.cpu_count() or 1, "gpu": gpus, "cuda": gpus, "mps": 1}[accelerator]
    count = len(devices) if isinstance(devices, list) else int(devices) if _whole(devices) else 0
    if isinstance(devices, list) and not _numbers(devices):
        count = 0
    if count < 1:
        raise SettingError(
            "trainer.devices",
            devices,
            "must be a whole number of at least 1, auto, or a list of different devices' "
            "numbers, [0,2]",
        )
    if count > there:
        kind = "CPU cores" if accelerator == "cpu" else "GPUs"
        raise SettingError(
            "trainer.devices",
            devices,
            f"there are {there} {kind} here",
            "ask for at most that many",
        )
    if isinstance(devices, list) and max(map(int, devices)) >= there:
        raise SettingError(
            "trainer.devices",
            devices,
            f"the last one here is number {there - 1}",
            "they are counted from 0",
        )
    if not isinstance(devices, list):
        trainer["devices"] = count


def _whole(devices: Any) -> bool:
    text = str(devices)
    return text.isdecimal() and len(text) < 10 and not isinstance(devices, bool)


def _numbers(devices: list[Any]) -> bool:
    """Whether these are distinct device indices."""
    return all(map(_whole, devices)) and len(set(map(int, devices))) == len(devices)
