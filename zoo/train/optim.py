"""Optimisers, parameter groups and schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import ZooError
from .config import TrainConfig

OWN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: with weight decay, and without (vectors, scalars, and what `no_weight_decay()` of a module names)."""
    exempt = set()
    for prefix, module in model.named_modules():
        names = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        exempt |= {f"{prefix}.{name}".lstrip(".") for name in names}
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or name in exempt else decayed).append(parameter)
    return [
        {"params": params, "weight_decay": decay} for params, decay in ((decayed, weight_decay), (free, 0.0)) if params
    ]


def make_optimizer(model: nn.Module, config: TrainConfig, total_steps: int) -> dict:
    """Optimiser and schedule in Lightning's form; `total_steps` counts optimiser steps."""
    groups = parameter_groups(model, config.weight_decay)
    name = config.optimizer.lower()
    if name.endswith("adahessian"):
        raise ZooError(f"train.optimizer={config.optimizer} needs second derivatives, which training does not make")
    if name in OWN:
        optimizer = OWN[name](groups, lr=config.lr, **({"momentum": 0.9} if name == "sgd" else {}))
    else:
        from timm.optim import create_optimizer_v2

        try:
            optimizer = create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=config.weight_decay)
        except (ValueError, AssertionError) as error:
            raise ZooError(
                f"unknown optimizer '{config.optimizer}'; valid: {', '.join(OWN)} or a name of timm's factory"
            ) from error
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, config, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _factor(step: int, config: TrainConfig, total: int) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    left, end = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)), config.lr_end or 0.0
    return end + (1 - end) * left
