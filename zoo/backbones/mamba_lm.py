"""Mamba language models: pre-norm residual blocks of one mixer each, optionally attention layers and MLPs.

    x <- x + mixer(RMSNorm(x));   [x <- x + MLP(RMSNorm(x))];   logits = RMSNorm(x) E'

Mamba (Gu and Dao, 2023, arXiv:2312.00752) with S6, Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060) with SSD, and hybrids
by a list of mixers, one per layer. `from_pretrained` reads published folders: `state-spaces/mamba*`, `mamba2*` and the
`-hf` layout, from safetensors or from a .bin through torch's weights-only loader. The vocabulary is padded to a
multiple as published; logits of the padding are cut off.
"""

from __future__ import annotations

import functools
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadArgument, ZooError
from ..files import read_json
from ..foreign import reading
from ..mixers import create_mixer
from ..mixers.base import SeqContext, State, last_valid
from ..nn.norm import RMSNorm
from ..ops.backends import fast_row
from ..ops.checks import expect, expect_integers
from ._mamba_published import read_config, read_weights, rename
from .base import Model

STATE = frozenset({"state"})


class MambaLM(Model):
    """A language model of S6, SSD or any other mixers; reads published Mamba checkpoints."""

    configs = {
        "mamba_lm": {},
        "mamba2_lm": {"mixer": {"name": "ssd", "head_dim": 32, "d_state": 64}},
        "mamba_130m": {"dim": 768, "layers": 24},
        "mamba_370m": {"dim": 1024, "layers": 48},
        "mamba_790m": {"dim": 1536, "layers": 48},
        "mamba_1_4b": {"dim": 2048, "layers": 48},
        "mamba_2_8b": {"dim": 2560, "layers": 64},
        "mamba2_130m": {"dim": 768, "layers": 24, "mixer": "ssd", "vocab_multiple": 16},
        "mamba2_370m": {"dim": 1024, "layers": 48, "mixer": "ssd", "vocab_multiple": 16},
        "mamba2_780m": {"dim": 1536, "layers": 48, "mixer": "ssd", "vocab_multiple": 16},
        "mamba2_1_3b": {"dim": 2048, "layers": 48, "mixer": "ssd", "vocab_multiple": 16},
        "mamba2_2_7b": {"dim": 2560, "layers": 64, "mixer": "ssd", "vocab_multiple": 16},
    }
    accepts = ("tokens",)
    inputs = ("tokens",)
    given = ("vocab_size",)
    tiny = {"dim": 32, "layers": 2}

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 256,
        layers: int = 4,
        mixer: Any = "s6",
        attention_layers: tuple[int, ...] = (),
        attention: Any = None,
        mixers: list[Any] | None = None,
        hidden: int = 0,
        norm_eps: float = 1e-5,
        tied: bool = True,
        vocab_multiple: int = 8,
        dropout: float = 0.0,
        residual_in_fp32: bool = True,
    ):
        """`mixer` (a name, or a mapping of name and arguments) in every layer; `attention` in `attention_layers`.

        `mixers` states every layer's mixer instead; `hidden` > 0 adds an MLP to each layer; `tied`: the head is the
        embedding; `dropout` on each residual branch; `residual_in_fp32`: what the layers add to is in float32 where the
        model is in bfloat16, as in the released code.
        """
        super().__init__()
        self.vocab_size, self.dim, self.residual_in_fp32 = vocab_size, dim, residual_in_fp32
        if mixers is None:
            attention = (
                {"name": "attention", "heads": max(1, dim // 64), "rope": 10_000.0} if attention is None else attention
            )
            mixers = [attention if layer in attention_layers else mixer for layer in range(layers)]
        if len(mixers) != layers or not set(attention_layers) <= set(range(layers)):
            raise ZooError(
                f"MambaLM: mixers names {len(mixers)} of {layers} layers, attention_layers {tuple(attention_layers)}; "
                "name every layer once"
            )
        self.embedding = nn.Embedding(-(-vocab_size // vocab_multiple) * vocab_multiple, dim)
        self.layers = nn.ModuleList(_Block(dim, one, hidden, norm_eps, dropout) for one in mixers)
        self.norm_f = RMSNorm(dim, norm_eps)
        self.lm_head = None if tied else nn.Linear(dim, self.embedding.num_embeddings, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():  # GPT-2's rule, as the released code: outputs of residual branches shrink with the depth
            branches = len(self.layers) * (2 if hidden else 1)
            for block in self.layers:
                for out in (block.mixer.ports().get("out"), block.mlp.fc2.weight if block.mlp else None):
                    if out is not None:
                        out.div_(branches**0.5)

    @property
    def causal(self) -> bool:
        """Whether all mixers are."""
        return self.mixers_are_causal()

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) int64 to (B, L, dim)."""
        return self.run(tokens)[0]

    def tied(self) -> str | None:
        """The tokens, unless the head has a weight of its own."""
        return "embedding" if self.lm_head is None else None

    def pooled_features(self, tokens: Tensor) -> Tensor:
        """Features (B, dim) of the last token that is no padding (0), or the mean over all if it is not causal."""
        place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        length = torch.where(tokens != 0, place, 0).amax(1).clamp(min=1)
        if self.causal:
            return last_valid(self.forward_features(tokens), length)
        ctx = SeqContext(lengths=length)
        features, _ = self.run(tokens, ctx)
        return (features * ctx.valid(tokens.shape[1])[..., None]).sum(1) / length[:, None]

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (..., dim) to logits (..., vocab_size); a tied head is the embedding's weight itself."""
        logits = features @ self.embedding.weight.T if self.lm_head is None else self.lm_head(features)
        return logits[..., : self.vocab_size]

    def run(
        self,
        tokens: Tensor,
        ctx: SeqContext | None = None,
        states: list[State] | None = None,
        want: frozenset = frozenset(),
    ) -> tuple[Tensor, list[State]]:
        """Features and, if "state" is wanted, every layer's state; with `states` it goes on from there."""
        x, after = self.embedding(tokens), []
        dtype, x = x.dtype, self._stream(x)
        for block, state in zip(self.layers, [None] * len(self.layers) if states is None else states, strict=True):
            x, state = block(x, ctx, state, want, dtype)
            after.append(state)
        return self.norm_f(x).to(dtype), after if "state" in want else []

    def _stream(self, x: Tensor) -> Tensor:
        """What the layers add to, in float32 or wider unless it is to be as wide as the model."""
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.residual_in_fp32 else x

    def init_states(self, batch: int) -> list[State]:
        """Every layer's state before the first token."""
        if not self.causal:
            raise ZooError("MambaLM: its mixers look at later tokens, so that it cannot go on token by token")
        weight = next(self.embedding.parameters())
        return [block.mixer.init_state(batch, dtype=weight.dtype, device=weight.device) for block in self.layers]

    def step(self, token: Tensor, states: list[State], compiled: bool = False) -> tuple[Tensor, list[State]]:
        """One token (B,) to logits (B, vocab_size) and the next states, by the mixers' recurrences.

        `compiled`: the layers' step goes through torch.compile, once for all layers alike; for fixed-size states.
        """
        step = _compiled_step() if compiled else _Block.step
        x, after = self.embedding(token), []
        with fast_row(x):
            dtype, x = x.dtype, self._stream(x)
            for block, state in zip(self.layers, states, strict=True):
                x, state = step(block, x, state, dtype)
                after.append(state)
            return self.forward_head(self.norm_f(x).to(dtype)), after

    @torch.inference_mode()
    def generate(
        self,
        prompt: Tensor,
        steps: int,
        *,
        lengths: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        compiled: bool = False,
    ) -> Tensor:
        """Continue prompts (B, L), of `lengths` (B,) if they differ, by `steps` tokens: (B, steps).

        Temperature 0 takes the most probable token; otherwise one is drawn, from the `top_k` most probable (None or 0:
        all) or from the fewest whose probability reaches `top_p`. Memory is that of the states, constant in `steps` for
        recurrent ones. `compiled` as in `step`.
        """
        self._check_generation(prompt, steps, lengths)
        check_sampling(temperature, top_k, top_p)
        if not (steps and len(prompt)):
            return prompt.new_zeros(len(prompt), steps, dtype=torch.int64)
        draw = torch.Generator(prompt.device).manual_seed(seed)
        ctx = None if lengths is None else SeqContext(lengths=lengths)
        features, states = self.run(prompt, ctx, want=STATE)
        logits, made = self.forward_head(last_valid(features, lengths)), []
        for n in range(steps):
            made.append(choose(logits, temperature, top_k, top_p, draw))
            if n + 1 < steps:
                logits, states = self.step(made[-1], states, compiled)
        return torch.stack(made, 1)

    def _check_generation(self, prompt: Tensor, steps: int, lengths: Tensor | None) -> None:
        if not self.causal:
            raise ZooError("MambaLM.generate: its mixers look at later tokens; choose causal ones")
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0:
            raise BadArgument(f"generate: steps: expected a whole number from 0, got {steps!r}")
        rows = prompt.shape[0] if isinstance(prompt, Tensor) and prompt.ndim else "B"
        expect("generate", "prompt", prompt, rows, "L")
        expect_integers("generate", "prompt", prompt)
        strange = prompt[(prompt < 0) | (prompt >= self.vocab_size)]
        if len(strange):
            raise BadArgument(
                f"generate: prompt: expected tokens from 0 to {self.vocab_size - 1}, got {int(strange[0])}"
            )
        if lengths is None:
            return
        expect("generate", "lengths", lengths, len(prompt))
        expect_integers("generate", "lengths", lengths)
        if bool(((lengths < 1) | (lengths > prompt.shape[1])).any()):
            raise BadArgument(
                f"generate: lengths: expected 1 to {prompt.shape[1]}, the prompt's steps, got {lengths.tolist()[:8]}"
            )

    @classmethod
    def from_original(cls, weights: dict[str, Tensor], **config) -> MambaLM:
        """A model from published weights, of either layout; `config` are constructor arguments."""
        model = cls(**config)
        own = {rename(name): tensor for name, tensor in weights.items()}
        if model.lm_head is None and "lm_head.weight" in own:
            head = own.pop("lm_head.weight")
            if not torch.equal(head, own.setdefault("embedding.weight", head)):
                raise ZooError("the checkpoint's head is not its embedding; build the model with tied=False")
        model.load_original(own)
        return model

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> MambaLM:
        """A model from a published folder: `config.json` beside `model.safetensors` or `pytorch_model.bin`."""
        folder = Path(folder)
        weights, published = read_weights(folder), read_json(folder / "config.json", infinity=True)
        with reading(folder / "config.json", "published configuration", "get the folder anew"):
            return cls.from_original(weights, **read_config(published))


class _Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)) where there is one."""

    def __init__(self, dim: int, mixer: Any, hidden: int, eps: float, dropout: float):
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.mixer = create_mixer(mixer, dim)
        self.norm2 = RMSNorm(dim, eps) if hidden else None
        self.mlp = GatedMLP(dim, hidden) if hidden else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, ctx: SeqContext | None, state: State | None, want: frozenset, dtype: torch.dtype
    ) -> tuple[Tensor, State | None]:
        """The stream x (B, L, dim), whatever its dtype; branches compute in `dtype`."""
        out = self.mixer(self.norm(x.to(dtype)), ctx, state, want & STATE)
        return self._add_mlp(x + self.dropout(out.y), dtype), out.state

    def step(self, x: Tensor, state: State, dtype: torch.dtype) -> tuple[Tensor, State]:
        out = self.mixer.step(self.norm(x.to(dtype)), None, state)
        return self._add_mlp(x + out.y, dtype), out.state

    def _add_mlp(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if self.mlp is None else x + self.dropout(self.mlp(self.norm2(x.to(dtype))))


@functools.cache
def _compiled_step():
    return torch.compile(_Block.step, dynamic=False)


class GatedMLP(nn.Module):
    """fc2(y * SiLU(gate)), [y | gate] = fc1 x, as the released hybrids."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., dim), position by position."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * nn.functional.silu(gate))


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `BadArgument` for what no draw can follow."""
    if not 0 <= temperature < float("inf"):
        raise BadArgument(f"generate: temperature: expected a number from 0, got {temperature}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 0):
        raise BadArgument(f"generate: top_k: expected a whole number from 1, or 0 or None for no limit, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise BadArgument(f"generate: top_p: expected a probability above 0, up to 1, got {top_p}")


def choose(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, draw: torch.Generator) -> Tensor:
    """A token (B,) from logits (B, V)."""
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1])).values[:, -1:], -torch.inf)
    if top_p is not None:
        ordered, index = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # what comes before a token reaches top_p already
        logits = logits.masked_fill(outside.gather(1, index.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1)
