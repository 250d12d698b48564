"""Where torch computes: the processor, or a CUDA device (a Jetson's) where it works. Every fallback has its reason."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

TorchDevice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Choice:
    """The device to compute on; `is_other`: it is not the one whose memory holds the model, so copies are needed.

    `reason`: why it is the processor although something else was asked for.
    """

    device: torch.device
    is_other: bool = False
    reason: str = ""


def choose(wanted: TorchDevice) -> Choice:
    """`cpu`: the processor. `cuda` and `auto`: a CUDA device if one works, else the processor with the reason.

    Works means: computed something just now. A build without kernels for this chip finds its device all the same.
    """
    processor = torch.device("cpu")
    if wanted == "cpu":
        return Choice(processor)
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return Choice(processor, reason=f"torch {torch.__version__} was built without CUDA")
    try:
        if not torch.cuda.is_available():
            return Choice(processor, reason="no CUDA device was found")
        device = torch.device("cuda", torch.cuda.current_device())
        (torch.ones(8, device=device) @ torch.ones(8, device=device)).item()
    except RuntimeError as error:
        return Choice(processor, reason=f"CUDA does not work here: {first_line(error)}")
    return Choice(device, is_other=True)


def release(device: torch.device) -> None:
    """Hand memory that torch keeps for itself back; a device that is broken has none to give."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    """What an error is, on one line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]
