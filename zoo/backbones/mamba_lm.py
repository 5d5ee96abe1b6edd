"""Mamba language models: pre-norm residual blocks of one mixer each, optionally attention layers and MLPs.

    x <- x + mixer(RMSNorm(x));   [x <- x + MLP(RMSNorm(x))];   logits = RMSNorm(x) E'

Mamba (Gu and Dao, 2023, arXiv:2312.00752) with S6, Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060) with SSD, and hybrids
by a list of mixers, one per layer. `from_pretrained` reads published folders: `state-spaces/mamba*`, `mamba2*` and the
`-hf` layout, from safetensors or from a .bin through torch's weights-only loader. The vocabulary is padded to a
multiple as published; logits of the padding are cut off.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ZooError
from ..files import read_json
from ..mixers import create_mixer
from ..mixers.base import SeqContext, State, last_valid
from ..nn.norm import RMSNorm
from ..ops.backends import fast_row
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
    ):
        """`mixer` (a name, or a mapping of name and arguments) in every layer; `attention` in `attention_layers`.

        `mixers` states every layer's mixer instead; `hidden` > 0 adds an MLP to each layer; `tied`: the head is the
        embedding; `dropout` on each residual branch.
        """
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
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
        """Features (..., dim) to logits (..., vocab_size)."""
        weight = self.embedding.weight if self.lm_head is None else self.lm_head.weight
        return (features @ weight.T)[..., : self.vocab_size]

    def run(
        self,
        tokens: Tensor,
        ctx: SeqContext | None = None,
        states: list[State] | None = None,
        want: frozenset = frozenset(),
    ) -> tuple[Tensor, list[State]]:
        """Features and, if "state" is wanted, every layer's state; with `states` it goes on from there."""
        x, after = self.embedding(tokens), []
        for block, state in zip(self.layers, [None] * len(self.layers) if states is None else states, strict=True):
            x, state = block(x, ctx, state, want)
            after.append(state)
        return self.norm_f(x), after if "state" in want else []

    def init_states(self, batch: int) -> list[State]:
        """Every layer's state before the first token."""
        if not self.causal:
            raise ZooError("MambaLM: its mixers look at later tokens, so that it cannot go on token by token")
        weight = self.embedding.weight
        return [block.mixer.init_state(batch, dtype=weight.dtype, device=weight.device) for block in self.layers]

    def step(self, token: Tensor, states: list[State], compiled: bool = False) -> tuple[Tensor, list[State]]:
        """One token (B,) to logits (B, vocab_size) and the next states, by the mixers' recurrences.

        `compiled`: the layers' step goes through torch.compile, once for all layers alike; for fixed-size states.
        """
        step = _compiled_step() if compiled else _Block.step
        x, after = self.embedding(token), []
        with fast_row(x):
            for block, state in zip(self.layers, states, strict=True):
                x, state = step(block, x, state)
                after.append(state)
            return self.forward_head(self.norm_f(x)), after

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

        Temperature 0 takes the most probable token; otherwise one is drawn, from the `top_k` most probable or from the
        fewest whose probability reaches `top_p`. Memory is that of the states, constant in `steps` for recurrent ones.
        `compiled` as in `step`.
        """
        draw = torch.Generator(prompt.device).manual_seed(seed)
        ctx = None if lengths is None else SeqContext(lengths=lengths)
        features, states = self.run(prompt, ctx, want=STATE)
        logits, made = self.forward_head(last_valid(features, lengths)), []
        for n in range(steps):
            made.append(choose(logits, temperature, top_k, top_p, draw))
            if n + 1 < steps:
                logits, states = self.step(made[-1], states, compiled)
        return torch.stack(made, 1)

    @classmethod
    def from_original(cls, weights: dict[str, Tensor], **config) -> MambaLM:
        """A model from published weights, of either layout; `config` are constructor arguments."""
        model = cls(**config)
        own = {rename(name): tensor for name, tensor in weights.items()}
        if model.lm_head is None and "lm_head.weight" in own:
            head = own.pop("lm_head.weight")
            if not torch.equal(head, own["embedding.weight"]):
                raise ZooError("the checkpoint's head is not its embedding; build the model with tied=False")
        missing, unknown = model.load_state_dict(own, strict=False)
        if missing or unknown:
            raise ZooError(
                f"the checkpoint does not fit: misses {', '.join(missing[:3]) or 'nothing'}, has "
                f"{', '.join(unknown[:3]) or 'nothing'} too many; check the configuration"
            )
        return model.eval()

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> MambaLM:
        """A model from a published folder: `config.json` beside `model.safetensors` or `pytorch_model.bin`."""
        folder = Path(folder)
        return cls.from_original(read_weights(folder), **read_config(read_json(folder / "config.json")))


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
        self, x: Tensor, ctx: SeqContext | None, state: State | None, want: frozenset
    ) -> tuple[Tensor, State | None]:
        out = self.mixer(self.norm(x), ctx, state, want & STATE)
        return self._add_mlp(x + self.dropout(out.y)), out.state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        out = self.mixer.step(self.norm(x), None, state)
        return self._add_mlp(x + out.y), out.state

    def _add_mlp(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.dropout(self.mlp(self.norm2(x)))


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


def choose(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, draw: torch.Generator) -> Tensor:
    """A token (B,) from logits (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1])).values[:, -1:], -torch.inf)
    if top_p is not None:
        ordered, index = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # what comes before a token reaches top_p already
        logits = logits.masked_fill(outside.gather(1, index.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1)


def rename(name: str) -> str:
    """A published parameter's name as ours."""
    return name.removeprefix("backbone.").replace("embeddings.weight", "embedding.weight")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published folder."""
    from safetensors.torch import load_file

    shards = sorted(folder.glob("model*.safetensors"))
    if shards:
        return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise ZooError(f"{folder}: no model.safetensors and no pytorch_model.bin; give the folder of a published model")


def read_config(published: dict) -> dict:
    """Constructor arguments from a published `config.json`, of state-spaces or of transformers."""
    kind = published.get("model_type")
    if kind == "mamba":
        mixer = {
            "name": "s6", "d_state": published["state_size"], "d_conv": published["conv_kernel"],
            "expand": published["expand"], "dt_rank": published["time_step_rank"], "bias": published["use_bias"],
            "conv_bias": published["use_conv_bias"],
        }  # fmt: skip
    elif kind == "mamba2":
        mixer = {
            "name": "ssd", "d_state": published["state_size"], "d_conv": published["conv_kernel"],
            "expand": published["expand"], "head_dim": published["head_dim"], "groups": published["n_groups"],
            "bias": published["use_bias"], "conv_bias": published["use_conv_bias"],
            "dt_limit": tuple(float(bound) for bound in published["time_step_limit"]),
            "norm_eps": published["layer_norm_epsilon"],
        }  # fmt: skip
    elif kind is not None:
        raise ZooError(f"config.json: model_type '{kind}' is neither mamba nor mamba2; give a Mamba folder")
    if kind is not None:
        return {
            "vocab_size": published["vocab_size"], "dim": published["hidden_size"], "mixer": mixer, "vocab_multiple": 1,
            "layers": published["num_hidden_layers"], "norm_eps": published["layer_norm_epsilon"],
            "tied": published.get("tie_word_embeddings", kind == "mamba"),
        }  # fmt: skip
    if published.get("attn_layer_idx"):
        raise ZooError(
            "config.json: attn_layer_idx: published attention layers carry a convolution that this model has not; "
            "give a folder without attention layers"
        )
    given = dict(published.get("ssm_cfg") or {})
    name = {"Mamba1": "s6", "Mamba2": "ssd"}[given.pop("layer", "Mamba1")]
    names = {"headdim": "head_dim", "ngroups": "groups", "chunk_size": "chunk", "A_init_range": "A_range"}
    return {
        "vocab_size": published["vocab_size"], "dim": published["d_model"], "layers": published["n_layer"],
        "mixer": {"name": name, **{names.get(key, key): value for key, value in given.items()}},
        "hidden": published.get("d_intermediate", 0), "tied": published.get("tie_embeddings", True),
        "vocab_multiple": published.get("pad_vocab_size_multiple", 8),
    }  # fmt: skip
