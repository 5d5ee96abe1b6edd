"""Adapters on layers whose weights are read in a form of their own: as if they were merged into the weights."""

import copy

import pytest
import torch
from statezoo.zoo.api import create_model
from statezoo.zoo.nn.effective import affine, causal_conv
from torch import nn


class LowRank(nn.Module):
    """A layer and a product of two small matrices beside it; like adapters elsewhere it gives no merged weight."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base = layer
        self.down = nn.Parameter(0.3 * torch.randn(rank, layer.in_features, dtype=torch.float64))
        self.up = nn.Parameter(0.3 * torch.randn(layer.out_features, rank, dtype=torch.float64))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def merged(model):
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRank):
            with torch.no_grad():
                layer.base.weight.add_(layer.up @ layer.down)
            model.set_submodule(name, layer.base)
    return model


def adapted(model):
    """Adapters on every linear layer outside of mixers."""
    names = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and ".ssd." not in n]
    for name in names:
        model.set_submodule(name, LowRank(model.get_submodule(name)))
    return model


@pytest.mark.parametrize("gate_per_step", [True, False])
def test_adapters_of_a_time_track(gate_per_step):
    torch.manual_seed(0)
    small = {"num_items": 30, "max_len": 8, "dim": 16, "d_state": 8, "head_dim": 8, "gate_per_step": gate_per_step}
    model = adapted(create_model("tim4rec", **small).double().eval())
    items, length = torch.randint(1, 31, (2, 6)), torch.tensor([6, 4])
    times = torch.randint(1, 10**6, (2, 6)).cumsum(1)
    with torch.no_grad():
        found, wanted = (m.forward_features(items, times, length) for m in (model, merged(model)))
    assert torch.allclose(found, wanted, atol=1e-10)
    model.forward_features(items, times, length).sum().backward()
    assert all(float(model.tracks[0].fc1.get_parameter(n).grad.abs().max()) > 0 for n in ("up", "down"))


def test_adapters_of_edge_convolutions():
    torch.manual_seed(0)
    model = adapted(create_model("dgcnn", num_outputs=3, widths=(16, 32), k=4, code=32, dropout=0.0).double().eval())
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model(points), merged(model)(points), atol=1e-10)


def test_hooks_and_parametrizations_are_seen():
    layer, x = nn.Linear(3, 4).double(), torch.randn(2, 3, dtype=torch.float64)
    conv, y = nn.Conv1d(3, 3, 4, groups=3).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    plain = affine(layer, x), causal_conv(conv, 4, y)
    handles = [part.register_forward_hook(lambda *call: 2 * call[-1]) for part in (layer, conv)]
    assert all(torch.allclose(two, 2 * one) for one, two in zip(plain[0], affine(layer, x), strict=True))
    assert torch.allclose(causal_conv(conv, 4, y), 2 * plain[1])
    for handle in handles:
        handle.remove()
    assert affine(layer, x)[0] is layer.weight
    nn.utils.parametrizations.weight_norm(layer)
    assert torch.allclose(affine(layer, x)[0], layer.weight)
