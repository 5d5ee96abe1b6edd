"""What the systems that will stand on the core need of its protocol, each as a sketch of a few lines.

Point serialization, attention on hidden states, time-scaled steps, pruned tokens, reverse-complement paths, a memory
read by another layer, weight surgery, a frozen teacher, int8 at observation points, per-layer mixers in a config.
"""

from dataclasses import replace

import pytest
import torch
from statezoo.zoo.mixers import create_mixer
from statezoo.zoo.mixers.attention import Attention
from statezoo.zoo.mixers.base import Mixer, Out, SeqContext, take
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.mixers.ssd import SSD
from statezoo.zoo.mixers.wrappers import MultiPath
from torch import nn

STATE = frozenset({"state"})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_point_serialization():
    """Clouds scanned along x, y, z and inside-out and back, with a mixer per path, padded clouds among them."""
    from statezoo.zoo import orders

    points, features = rand(2, 9, 3), rand(2, 9, 8)
    paths = [orders.by_coordinate(points, axis) for axis in range(3)] + [orders.inside_out(points)]
    order = torch.stack([path.order for path in paths], 1)
    order = torch.cat([order, order.flip(2)], 1)
    scan = MultiPath(lambda: S6(8, d_state=4), 8, merge="sum").double()
    y = scan(features, SeqContext(orders=order, inverses=order.argsort(-1))).y
    shuffled = torch.randperm(9)
    moved = scan(
        features[:, shuffled], SeqContext(orders=(again := shuffled.argsort()[order]), inverses=again.argsort(-1))
    ).y
    close(moved, y[:, shuffled])  # the order of the file does not matter


def test_attention_on_hidden_states():
    """A2Mamba: shared attention maps mix the hidden states (one per channel) before they are read out."""
    mixer, maps = S6(8, d_state=1).double(), rand(2, 16, 7, 7).softmax(-1)
    x = rand(2, 7, 8)
    parts = mixer.project(x)
    states = mixer.states(parts)[..., 0]  # (B, L, E)
    mixed = torch.einsum("bets,bse->bte", maps, states) * parts.C
    y = mixer.finish(mixed[..., None], parts)
    assert y.shape == x.shape and not torch.allclose(y, mixer(x).y)
    unit = torch.eye(7, dtype=x.dtype).expand(2, 16, 7, 7)
    mixed = torch.einsum("bets,bse->bte", unit, states) * parts.C
    close(mixer.finish(mixed[..., None], parts), mixer(x).y)
    close(mixer(x, want=frozenset({"states"})).aux["states"][..., 0], states)


def test_time_scaled_steps_in_training_and_in_serving():
    """TiM4Rec: a time track multiplies the raw dt of every head before bias and softplus, in `step` too."""
    mixer, x, gaps = SSD(8, d_state=4, head_dim=4).double(), rand(2, 6, 8), rand(2, 6, 4).exp()
    full, state = mixer(x, SeqContext(dt_scale=gaps)).y, mixer.init_state(2, dtype=x.dtype)
    for t in range(6):
        out = mixer.step(x[:, t], SeqContext(dt_scale=gaps[:, t : t + 1]), state)
        close(out.y, full[:, t])
        state = out.state


def test_gaps_of_pruned_tokens():
    """Token-pruned Vim: the scan keeps a third of the tokens and lets the time of the others pass."""
    mixer, x = S6(8, d_state=4, dt_max=2.0).double(), rand(2, 9, 8)
    kept = torch.tensor([[0, 4, 8], [2, 3, 7]])
    write = torch.zeros(2, 9, dtype=torch.bool).scatter(1, kept, True)
    aligned = mixer(x, SeqContext(kept=kept)).y
    close(aligned, take(mixer(x, SeqContext(write=write)).y, kept))
    assert not torch.allclose(aligned, mixer(take(x, kept)).y)  # scanning the kept tokens alone forgets the gaps


def test_reverse_complement_paths_with_a_channel_map():
    """DNA: flip the sequence and exchange complementary channels; with tied weights the layer is equivariant."""
    forward, complement = torch.arange(8), torch.arange(7, -1, -1)
    scan = MultiPath(lambda: S6(8, d_state=4), 2, tied=True, channels=torch.stack([forward, complement])).double()
    x, steps = rand(2, 6, 8), torch.arange(6)
    orders = torch.stack([steps, steps.flip(0)])
    ctx = SeqContext(orders=orders, inverses=orders)
    close(scan(x.flip(1, 2), ctx).y, scan(x, ctx).y.flip(1, 2))


class GatedMemory(Mixer):
    """SambaY's gated memory unit: no mixing of its own, it gates what another layer remembered."""

    uses, observed = frozenset({"memory"}), ("out",)

    def __init__(self, dim, memory_dim):
        super().__init__(dim)
        self.gate, self.out = nn.Linear(dim, memory_dim, bias=False), nn.Linear(memory_dim, dim, bias=False)

    def mix(self, x, ctx, state, want):
        return Out(self.observe["out"](self.out(ctx.memory["ssm"] * nn.functional.silu(self.gate(x)))))


def test_a_memory_read_by_another_layer():
    """The state-space output before its gate leaves through `aux` and enters as a tensor, padding or not."""
    writer, reader, x = S6(8, d_state=4).double(), GatedMemory(8, 16).double(), rand(2, 6, 8)
    first = writer(x, want=frozenset({"memory"}))
    y = reader(first.y, SeqContext(memory={"ssm": first.aux["memory"]})).y
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    again = writer(x, SeqContext(mask=mask), want=frozenset({"memory"}))
    masked = reader(again.y, SeqContext(memory={"ssm": again.aux["memory"]}, mask=mask)).y
    close(masked[0], y[0])


def test_weight_surgery_from_attention_to_ssd():
    """MIL: values become x, keys B, queries C; grouped keys are repeated for every head that shares them."""
    teacher = Attention(16, 4, kv_heads=2, bias=False).double()
    student = SSD(16, expand=1, head_dim=4, d_state=4, groups=4, d_conv=1, norm=False, conv_bias=False).double()
    old, new = teacher.ports(), student.ports()
    with torch.no_grad():
        for name in ("k", "v"):
            new[name].copy_(old[name].view(2, 4, 16).repeat_interleave(2, 0).flatten(0, 1))
        new["q"].copy_(old["q"])
        new["out"].copy_(old["out"])
        student.conv1d.weight.fill_(1)
    student_parts, teacher_parts = student.project(x := rand(1, 5, 16)), teacher.project(x)
    spread = teacher_parts.k.repeat_interleave(2, 2)
    close(student_parts.B, nn.functional.silu(spread))
    close(student_parts.C, nn.functional.silu(teacher_parts.q))
    assert torch.equal(student.in_proj.weight[16:32], new["v"])  # ports are views: the mixer itself has changed


def test_a_frozen_teacher_gives_matrices_and_hidden_states():
    """MOHAWK: per layer the mixing matrix and the block's output; the student's matrix learns to be the teacher's."""
    teacher, student = Attention(8, 2).double().requires_grad_(False), SSD(8, head_dim=8, d_state=8).double()
    x = rand(2, 6, 8)
    target, hidden = teacher.materialize(x).matrix, teacher(x).y
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (student.materialize(x).matrix - target).square().mean() + 0.1 * (student(x).y - hidden).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_int8_at_observation_points():
    """Quamba: observers record ranges at the points, then hooks there replace tensors by their int8 rounding."""
    mixer, x, largest = S6(8, d_state=4).double(), rand(2, 6, 8), {}

    def observe(name):
        return lambda module, inputs, output: largest.__setitem__(name, float(output.abs().max()))

    handles = [module.register_forward_hook(observe(name)) for name, module in mixer.points().items()]
    exact = mixer(x).y
    for handle in handles:
        handle.remove()
    assert set(largest) == set(mixer.points())
    for name, module in mixer.points().items():
        scale = largest[name] / 127
        module.register_forward_hook(lambda m, i, output, s=scale: (output / s).round().clamp(-128, 127) * s)
    rounded = mixer(x).y
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_mixers_by_layer_in_a_config():
    """A hybrid is a list of names and arguments."""
    config = [
        "s6",
        {"name": "ssd", "head_dim": 4, "d_state": 4},
        {"name": "attention", "heads": 2, "window": 3},
        "identity",
    ]
    layers = nn.ModuleList(create_mixer(one, 8) for one in config).double()
    x = rand(2, 6, 8)
    whole, states, ys = x, [layer.init_state(2, dtype=x.dtype) for layer in layers], []
    for layer in layers:
        whole = whole + layer(whole).y
    for t in range(6):
        h = x[:, t]
        for i, layer in enumerate(layers):
            out = layer.step(h, None, states[i])
            h, states[i] = h + out.y, out.state
        ys.append(h)
    close(torch.stack(ys, 1), whole)


def test_the_context_is_frozen_and_replaced():
    ctx = SeqContext(lengths=torch.tensor([3, 2]))
    with pytest.raises(AttributeError):
        ctx.lengths = None
    assert replace(ctx, lengths=None).lengths is None and ctx.lengths is not None
