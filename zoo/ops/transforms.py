"""Custom ops with a gradient written by hand, under everything that differentiates or maps a program.

Autograd, checkpointing and torch.compile see a custom op. `torch.func.grad` and `vmap` cannot go through one and take
it as an `autograd.Function` instead; `vmap` goes through its slices one by one. Forward-mode differentiation
(`torch.func.jvp`, `torch.autograd.forward_ad`) has no rule for either and would drop tangents in silence: there a
backend of plain torch operations serves. A gradient by hand has no gradient of its own, which is said in words.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import BadArgument

FORWARD_MODE = "forward-mode differentiation"


class NoSecondDerivative(BadArgument, RuntimeError):
    """A second derivative of what has one alone; a RuntimeError too, as torch raises for its own ops."""


def within_func() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._are_functorch_transforms_active()


def within_forward_mode() -> bool:
    """Whether tangents may be carried along."""
    return forward_ad._current_level >= 0


def keeps_for_backward(*tensors: Tensor | None) -> bool:
    """Whether an op called with `tensors` is to keep what its backward reads."""
    if not torch.is_grad_enabled():
        return False
    # a tensor of an inner transform does not tell whether an outer one differentiates
    return within_func() or any(tensor is not None and tensor.requires_grad for tensor in tensors)


def differentiable(op, setup: Callable, gradients: Callable) -> Callable:
    """Give a custom op its gradient; what is returned calls it, with the same positional arguments."""
    op.register_autograd(gradients, setup_context=setup)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            found = op(*args)
            return tuple(found) if isinstance(found, list) else found

        setup_context = staticmethod(setup)
        backward = staticmethod(gradients)

        @staticmethod
        def vmap(info, in_dims, *args):
            slices = [
                Function.apply(*(a if d is None else a.select(d, at) for a, d in zip(args, in_dims, strict=True)))
                for at in range(info.batch_size)
            ]
            found = tuple(torch.stack(parts) for parts in zip(*slices, strict=True))
            return found, (0,) * len(found)

    def run(*args):
        # a traced program holds the op: its transforms are taken apart by the compiler
        return Function.apply(*args) if within_func() and not torch.compiler.is_compiling() else op(*args)

    return run


def differentiable_once(op, name: str) -> Callable:
    """The same for the backward of `name`, which has no gradient: NoSecondDerivative where one is asked for."""

    def refuse(ctx, *_):
        raise NoSecondDerivative(
            f"{name}_backward: expected at most one derivative of this backend, got a derivative of its gradient; "
            "compute within use_backend('reference')"
        )

    return differentiable(op, lambda ctx, inputs, output: None, refuse)
