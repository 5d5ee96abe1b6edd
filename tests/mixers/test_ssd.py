"""SSD's last step alone is the last step of all."""

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.ssd import SSD

OPTIONS = {
    "plain": {},
    "groups": {"groups": 2},
    "channels": {"D_per_channel": True, "norm": False},
    "mlp": {"d_ssm": 16},
}


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("context", ["none", "lengths", "steered"])
def test_the_last_step_alone(options, context):
    torch.manual_seed(0)
    mixer = SSD(16, d_state=6, head_dim=8, **OPTIONS[options]).double()
    x = torch.randn(3, 9, 16, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 1, 5])
    ctx = {
        "none": None,
        "lengths": SeqContext(lengths=lengths),
        "steered": SeqContext(
            lengths=lengths,
            dt_scale=torch.rand(3, 9, mixer.heads, dtype=torch.float64),
            log_decay=-torch.rand(3, 9, 1, dtype=torch.float64),
            write=torch.rand(3, 9) > 0.3,
        ),
    }[context]
    last = torch.full((3,), 8) if context == "none" else lengths - 1
    whole = mixer(x, ctx).y[torch.arange(3), last]
    alone = mixer.last(x, ctx)
    assert torch.allclose(alone, whole, atol=1e-12)
    weight, wanted = torch.randn_like(whole), [x, *mixer.parameters()]
    grads = [torch.autograd.grad((y * weight).sum(), wanted) for y in (alone, whole)]
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*grads, strict=True))


def test_the_last_step_wants_padding_at_the_right():
    mixer, x = SSD(16, head_dim=8), torch.zeros(1, 4, 16)
    for name, value in (
        ("segments", torch.zeros(1, 4, dtype=torch.int64)),
        ("mask", torch.ones(1, 4, dtype=torch.bool)),
    ):
        with pytest.raises(BadArgument, match=f"padded at the right, by ctx.lengths; got {name}"):
            mixer.last(x, SeqContext(**{name: value}))
