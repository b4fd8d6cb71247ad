"""Block reconstruction: the codes, scales and zero points of a block are trained together until its outputs are those
of the full-precision block, on a few hundred images.

    reconstruct(block, layers, inputs, targets)     # layers: the block's RoundedLinear modules, tuned in place

The inputs are those that the quantized model will really give the block, the targets what the full-precision model
computes there; so a block also makes up for some of what earlier blocks lost.

Sources: Li et al., "BRECQ", 2021 (arXiv:2102.05426); Nagel et al., "AdaRound", 2020 (arXiv:2004.10568); training weights
and scales of a block straight through: Chen et al., "EfficientQAT", 2024 (arXiv:2407.11062).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite.straight_through import RoundedLinear

#: Peak learning rates: codes in steps of the grid, logarithms of scales, zero points in steps.
RATES = {"code": 1e-2, "log_scale": 2e-3, "zero": 1e-2}
_BATCH = 32


def reconstruct(
    block: nn.Module,
    layers: Sequence[RoundedLinear],
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Tune `layers` of `block` so that block(inputs) comes near `targets`; (error before, error after), mean squares.

    inputs, targets: (images, tokens, width). The best state seen at the checks is kept, so the error never grows.
    """
    parameters = {
        name: [getattr(layer, name) for layer in layers if getattr(layer, name).requires_grad] for name in RATES
    }
    optimizer = torch.optim.Adam(
        [{"params": group, "lr": RATES[name]} for name, group in parameters.items() if group], betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=0.0)
    before = best = _error(block, inputs, targets, device)
    kept = _state(layers)
    for step in range(steps):
        chosen = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
        loss = F.mse_loss(block(inputs[chosen].to(device)), targets[chosen].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == steps - 1 or (step + 1) % 100 == 0:
            error = _error(block, inputs, targets, device)
            if error < best:
                best, kept = error, _state(layers)
    for layer, state in zip(layers, kept, strict=True):
        layer.load_state_dict(state)
    return before, best


def _state(layers: Sequence[RoundedLinear]) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]


@torch.no_grad()
def _error(block: nn.Module, inputs: Tensor, targets: Tensor, device: torch.device) -> float:
    total = 0.0
    for some, wanted in zip(inputs.split(64), targets.split(64), strict=True):
        total += float(F.mse_loss(block(some.to(device)), wanted.to(device), reduction="sum"))
    return total / targets.numel()
