"""TiM4Rec: time-aware state-space recommendation (Fan et al., Neurocomputing 654:131270, 2025, arXiv:2409.16182).

    x = LN(Dropout(E[item]));   d_1 = 0, d_t = T_t - T_{t-1};   tau = LN_L(d), one copy per head
    layer: u = phi(conv(phi(conv(tau * M(tau)))));   SSD with dt = softplus(raw dt * u + bias);   x <- LN(x + SSD(x))
           x <- LN(x + W2 Hardswish(W1 x));   tau <- LN_L(g tau + (1 - g) u), g = sigmoid(G tau)
    score(i) = <x_t, E[i]>

M is a two-layer perceptron *along time* (dense L x L matrices), G maps the track to one gate per head (or one per
step). u multiplies the raw time step before softplus, so that it changes the decay and the write weight alike (the
released code; the paper's text has a mask on the decay alone). The scan is the core's SSD mixer, steered by
`ctx.dt_scale`.

The published track is not causal: its norms and matrices look over the whole window, and because the first padded step
gives a difference of -T_last, of the order of 1e9, a normalised padded sequence holds little but its own length. Hence
`time_track`:

- "causal" (the mended form): statistics over the real steps so far, lower-triangular M and G, differences as
  log(1 + d) unless `gaps="seconds"`. Position t sees steps up to t alone, so that one pass trains all positions.
- "reference": as published. Trained per prefix.
- "none": no track; then this is SSD4Rec without its registers.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument
from ..mixers.base import SeqContext, State, take
from ..mixers.ssd import SSD
from ..nn.effective import affine, causal_conv
from ._recommender import Recommender

TAPS = 4  # of the track's convolutions
EPS_FFN = 1e-12  # the published FFN's norm keeps its own, whatever norm_eps is


class TiM4Rec(Recommender):
    """State-space recommendation whose time steps follow the time between a user's events."""

    configs = {
        "tim4rec": {},
        "tim4rec_256": {"dim": 256, "d_state": 64, "head_dim": 128, "time_track": "none"},
        "tim4rec_notime": {"time_track": "none"},
        "tim4rec.reference": {"time_track": "reference", "gaps": "seconds", "pad_competes": True},
    }
    accepts = ("log",)
    inputs = ("items", "times", "length")
    given = ("num_items", "max_len")
    tiny = {"dim": 32, "d_state": 16, "head_dim": 16, "dropout": 0.1}

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        *,
        dim: int = 64,
        layers: int = 2,
        d_state: int = 32,
        head_dim: int = 32,
        expand: int = 2,
        d_conv: int = 4,
        dropout: float = 0.2,
        time_dropout: float = 0.2,
        norm_eps: float = 1e-12,
        time_track: Literal["causal", "reference", "none"] = "causal",
        gaps: Literal["log", "seconds"] = "log",
        gate_per_step: bool = False,
        kaiming_conv: bool = False,
        pad_competes: bool = False,
        init_std: float = 0.02,
    ):
        """`num_items` without padding; `max_len` L, which the time track's matrices are bound to.

        `gate_per_step`: G gives a gate per step (the released p2p_residual), not one per head. Quirk, off by default:
        `pad_competes` leaves padding among the items of the training softmax.
        """
        super().__init__()
        self.causal, self.pad_competes, self.single = time_track != "reference", pad_competes, layers == 1
        self.item = nn.Embedding(num_items + 1, dim, padding_idx=None if pad_competes else 0)
        self.norm, self.dropout = nn.LayerNorm(dim, norm_eps), nn.Dropout(dropout)
        mixer = {"d_state": d_state, "head_dim": head_dim, "expand": expand, "d_conv": d_conv, "norm_eps": norm_eps}
        self.layers = nn.ModuleList(_Layer(dim, mixer, dropout, norm_eps) for _ in range(layers))
        self.track, self.tracks = None, None
        if time_track != "none":
            heads, causal = expand * dim // head_dim, time_track == "causal"
            self.track = _Gaps(max_len, heads, time_dropout, norm_eps, causal, gaps)
            self.tracks = nn.ModuleList(
                _Track(max_len, heads, time_dropout, norm_eps, causal, gate_per_step) for _ in range(layers)
            )
        self.reset(init_std)
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and kaiming_conv:
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def idle(self) -> set[str]:
        """Parameters that no output depends on: the track behind the last layer, which published counts hold."""
        last = f"tracks.{len(self.layers) - 1}."
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name.startswith((last + "gate", last + "norm"))}

    def forward_features(self, items: Tensor, times: Tensor, length: Tensor) -> Tensor:
        """Items and times (B, L) int64 padded with 0 at the right, length (B,); returns (B, L, dim)."""
        return self._run(items, times, length, last=False)

    def last_features(self, items: Tensor, times: Tensor, length: Tensor) -> Tensor:
        """Features (B, dim) behind the last event: the last layer makes that step alone."""
        return self._run(items, times, length, last=True)

    def pooled_features(self, items: Tensor, times: Tensor, length: Tensor) -> Tensor:
        """Those behind the last event."""
        return self.last_features(items, times, length)

    def _run(self, items: Tensor, times: Tensor, length: Tensor, last: bool) -> Tensor:
        x = self.norm(self.dropout(self.item(items)))
        tau = None if self.track is None else self.track(times, length)
        for n, layer in enumerate(self.layers):
            scale, top = None if tau is None else self.tracks[n](tau), n + 1 == len(self.layers)
            if tau is not None and not top:
                tau = self.tracks[n].following(tau, scale)
            ctx = SeqContext(lengths=length, dt_scale=scale)
            x = (layer.last if last and top else layer)(x, ctx, residual=not self.single)
        return x

    # serving: one event at a time
    # ---------------------------------------------------------------------------------------

    def init_states(self, batch: int) -> list[State]:
        """The layers' states before a user's first event."""
        if self.track is not None:
            return super().init_states(batch)  # the track mixes over the window
        weight = self.item.weight
        return [layer.ssd.init_state(batch, dtype=weight.dtype, device=weight.device) for layer in self.layers]

    def step(self, item: Tensor, time: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """One event (B,) per user to features (B, dim) and the next states."""
        x, after = self.norm(self.item(item)), []
        for layer, state in zip(self.layers, states, strict=True):
            out = layer.ssd.step(x, None, state)
            x = layer.finish(x, out.y, residual=not self.single)
            after.append(out.state)
        return x, after

    @classmethod
    def from_original(cls, weights: dict[str, Tensor], **config) -> TiM4Rec:
        """A model from the authors' weights, in the reference form; `config` are further constructor arguments."""
        own = {_rename(name): tensor for name, tensor in weights.items()}
        first = (f"ssd_layers.0.ssd.{name}" for name in ("conv1d.weight", "dt_bias", "out_proj.weight"))
        sized = ("item_embedding.weight", *first)
        if missing := [name for name in sized if name not in weights]:
            raise BadArgument(f"TiM4Rec.from_original: misses {missing[0]}; give all weights of a model")
        timed = "track.norm.weight" in own
        state = weights["ssd_layers.0.ssd.conv1d.weight"].shape[0]
        dim = weights["item_embedding.weight"].shape[1]
        heads, inner = len(weights["ssd_layers.0.ssd.dt_bias"]), weights["ssd_layers.0.ssd.out_proj.weight"].shape[1]
        found = {
            "num_items": len(weights["item_embedding.weight"]) - 1, "dim": dim, "d_state": (state - inner) // 2,
            "expand": inner // dim, "head_dim": inner // heads, "time_track": "reference" if timed else "none",
            "layers": 1 + max(int(name.split(".")[1]) for name in own if name.startswith("layers.")),
        }  # fmt: skip
        if timed:
            found["max_len"] = len(own["track.norm.weight"])
            found["gate_per_step"] = len(own["tracks.0.gate.weight"]) > 1
        quirks = {**cls.configs["tim4rec.reference"], **found}
        model = cls(**{**quirks, **config})
        model.load_original(own)
        return model


class _Layer(nn.Module):
    """SSD and FFN, each with dropout, residual and norm behind it."""

    def __init__(self, dim: int, mixer: dict, dropout: float, eps: float):
        super().__init__()
        self.ssd = SSD(dim, bias=True, activation="hardswish", **mixer)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, EPS_FFN)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, ctx: SeqContext, residual: bool) -> Tensor:
        return self.finish(x, self.ssd(x, ctx).y, residual)

    def last(self, x: Tensor, ctx: SeqContext, residual: bool) -> Tensor:
        """The output (B, dim) at the last step alone."""
        return self.finish(take(x, ctx.lengths[:, None] - 1)[:, 0], self.ssd.last(x, ctx), residual)

    def finish(self, x: Tensor, y: Tensor, residual: bool) -> Tensor:
        y = self.dropout(y)
        x = self.norm1(y + x if residual else y)
        return self.norm2(x + self.dropout(self.fc2(self.dropout(F.hardswish(self.fc1(x))))))


class _TimeNorm(nn.Module):
    """Layer norm along time, affine per place: over the whole axis, or over the real steps so far."""

    def __init__(self, length: int, eps: float, causal: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(length)), nn.Parameter(torch.zeros(length))
        self.eps, self.causal = eps, causal

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, H, l); right padding needs no care where only earlier steps count."""
        steps = x.shape[-1]
        if not self.causal:
            return F.layer_norm(x, (steps,), self.weight, self.bias, self.eps)
        # centred by the first step and summed in float64: sums of squares of large numbers would cancel
        wide = (x - x[..., :1]).double()
        count = torch.arange(1, steps + 1, device=x.device)
        mean = wide.cumsum(-1) / count
        variance = (wide.square().cumsum(-1) / count - mean.square()).clamp(min=0)
        y = ((wide - mean) * torch.rsqrt(variance + max(self.eps, 1e-5))).to(x.dtype)
        return y * self.weight[:steps] + self.bias[:steps]


class _Gaps(nn.Module):
    """Timestamps to the first track: differences, normalised along time, a copy for each head."""

    def __init__(self, length: int, heads: int, dropout: float, eps: float, causal: bool, gaps: str):
        super().__init__()
        self.norm, self.dropout = _TimeNorm(length, eps, causal), nn.Dropout(dropout)
        self.heads, self.causal, self.log = heads, causal, gaps == "log"

    def forward(self, times: Tensor, length: Tensor) -> Tensor:
        """Times (B, L) int64 to (B, H, L) float32. Differences are exact: they are taken before any rounding."""
        if self.causal:
            gap = F.pad(times[:, 1:] - times[:, :-1], (1, 0))
            real = torch.arange(times.shape[1], device=times.device) < length[:, None]
            gap = torch.where(real, gap, 0).to(next(self.norm.parameters()).dtype)
            gap = gap.clamp(min=0).log1p() if self.log else gap
        else:  # as published: of float32 times, through the padding
            raw = times.to(torch.float32)
            gap = F.pad(raw[:, 1:] - raw[:, :-1], (1, 0)).to(next(self.norm.parameters()).dtype)
        return self.norm(self.dropout(gap)[:, None]).expand(-1, self.heads, -1)


class _Track(nn.Module):
    """One layer's part of the time track: the factor of its time steps, and the track of the next layer."""

    def __init__(self, length: int, heads: int, dropout: float, eps: float, causal: bool, per_step: bool):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(length, length), nn.Linear(length, length)
        self.conv1, self.conv2 = (nn.Conv1d(heads, heads, TAPS, groups=heads) for _ in range(2))
        self.gate, self.norm = nn.Linear(length, length if per_step else 1), _TimeNorm(length, eps, causal)
        self.dropout, self.causal, self.per_step, self.length = nn.Dropout(dropout), causal, per_step, length

    def forward(self, tau: Tensor) -> Tensor:
        """Tau (B, H, L) to u (B, L, H)."""
        u = tau * self._mix(self.fc2, F.silu(self._mix(self.fc1, self.dropout(tau))))
        u = u.transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            u = F.hardswish(causal_conv(conv, TAPS, u))
        return u

    def following(self, tau: Tensor, u: Tensor) -> Tensor:
        """The next layer's tau (B, H, L)."""
        g = torch.sigmoid(self._gate(self.dropout(tau)))
        return self.norm(g * tau + (1 - g) * u.transpose(1, 2))

    def _mix(self, layer: nn.Linear, tau: Tensor) -> Tensor:
        """A matrix along time, lower-triangular where the track is causal."""
        steps = tau.shape[-1]
        if not self.causal:
            return layer(tau)
        weight, bias = affine(layer, tau.new_empty(self.length))
        return F.linear(tau, weight[:steps, :steps].tril(), bias[:steps])

    def _gate(self, tau: Tensor) -> Tensor:
        if self.per_step or not self.causal:
            return self._mix(self.gate, tau)
        weight, bias = affine(self.gate, tau.new_empty(self.length))
        return (tau * weight[0, : tau.shape[-1]]).cumsum(-1) + bias  # what is known at each step


def _rename(name: str) -> str:
    """The authors' parameter name as ours."""
    swaps = {
        "item_embedding.": "item.", "in_layer_norm.": "norm.", "layer_norm_time.": "track.norm.",
    }  # fmt: skip
    for theirs, ours in swaps.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if not re.match(r"ssd_layers\.\d+\.\w+\.", name):
        return name
    _, layer, block, rest = name.split(".", 3)
    if block == "layer_norm":
        return f"layers.{layer}.norm1.{rest}"
    if block == "ffn":
        return f"layers.{layer}.{rest.replace('layer_norm', 'norm2')}"
    inner, _, leaf = rest.rpartition(".")
    track = {
        "mlp4time_scale.1": "fc1", "mlp4time_scale.3": "fc2", "conv1d4time_1": "conv1", "conv1d4time_2": "conv2",
        "time_gate_residual.1": "gate", "time_layer_norm": "norm",
    }  # fmt: skip
    if inner in track:
        return f"tracks.{layer}.{track[inner]}.{leaf}"
    return f"layers.{layer}.ssd.{rest}"
