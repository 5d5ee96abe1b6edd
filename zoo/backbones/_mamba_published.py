"""Published Mamba folders of state-spaces and of transformers: names, tensors and `config.json` for `MambaLM`.

Every field of a configuration is honoured, known to change no output (how weights were drawn, which kernel runs, who
made the file), or refused by its name: a model that is almost the published one would be wrong without a word.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import stored
from ..errors import ZooError
from ..foreign import reading

#: fields that change no output: what transformers keeps of any model, and how weights were drawn
METADATA = frozenset(
    "architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id finetuning_task id2label "
    "initializer_range is_decoder is_encoder_decoder label2id name_or_path num_labels output_attentions "
    "output_hidden_states pad_token_id problem_type return_dict sep_token_id task_specific_params tokenizer_class "
    "torch_dtype torchscript transformers_version unk_token_id use_bfloat16 use_cache "
    "rescale_prenorm_residual fused_add_norm initializer_cfg max_position_embeddings max_seq_len "
    # of generating, which older releases wrote beside the model
    "bad_words_ids begin_suppress_tokens cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id "
    "forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate "
    "suppress_tokens temperature tf_legacy_loss tie_encoder_decoder top_k top_p typical_p add_cross_attention "
    "pruned_heads".split()
)
#: fields that transformers' Mamba does not read, or reads to draw weights and to choose a kernel
UNREAD = frozenset(
    "time_step_min time_step_max time_step_floor time_step_scale time_step_init_scheme A_initializer_range "
    "use_mambapy use_associative_scan num_logits_to_keep norm_before_gate "
    "d_model d_inner n_layer pad_vocab_size_multiple tie_embeddings".split()
)
#: fields of ssm_cfg that draw weights or choose a kernel
DRAWN = frozenset("dt_min dt_max dt_init dt_scale dt_init_floor A_init_range conv_init".split())
KERNELS = frozenset("use_fast_path use_mem_eff_path layer_idx device dtype".split())
#: fields of ssm_cfg and the mixer's arguments
SSM = {
    "Mamba1": {name: name for name in ("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias")},
    "Mamba2": {
        **{name: name for name in ("d_state", "d_conv", "expand", "d_ssm", "norm_before_gate", "dt_limit")},
        **{name: name for name in ("conv_bias", "bias", "activation")},
        "headdim": "head_dim", "ngroups": "groups", "D_has_hdim": "D_per_channel", "rmsnorm": "norm",
        "chunk_size": "chunk",
    },
}  # fmt: skip
MIXER = {"Mamba1": "s6", "Mamba2": "ssd"}
MLP_MULTIPLE = 128  # the released gated MLP rounds its width up


def rename(name: str) -> str:
    """A published parameter's name as ours."""
    return name.removeprefix("backbone.").replace("embeddings.weight", "embedding.weight")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published folder."""
    shards = sorted(folder.glob("model*.safetensors"))
    if shards:
        return {name: tensor for shard in shards for name, tensor in stored.read_weights(shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        with reading(folder / "pytorch_model.bin", "weights file"):
            return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise ZooError(f"{folder}: no model.safetensors and no pytorch_model.bin; give the folder of a published model")


def read_config(published: dict) -> dict:
    """Constructor arguments from a published `config.json`, of state-spaces or of transformers."""
    kind = published.get("model_type")
    if kind not in (None, "mamba", "mamba2"):
        raise ZooError(f"config.json: model_type '{kind}' is neither mamba nor mamba2; give a Mamba folder")
    if published.get("attn_layer_idx"):
        raise ZooError(
            "config.json: attn_layer_idx: published attention layers carry a convolution that this model has not; "
            "give a folder without attention layers"
        )
    _only(published, "rms_norm", (True,), "layer norms are not in this model")
    for name in ("attn_cfg", *(("ssm_cfg", "d_intermediate") if kind else ())):
        if published.get(name):
            raise _refused(name, published[name], "it belongs to layers that this model has not")
    return _state_spaces(published) if kind is None else _transformers(published, kind)


def _state_spaces(published: dict) -> dict:
    known = METADATA | {
        "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "pad_vocab_size_multiple",
        "tie_embeddings", "d_intermediate", "attn_layer_idx", "attn_cfg", "model_type",
    }  # fmt: skip
    _all_known(published, known)
    given = dict(published.get("ssm_cfg") or {})
    layer = given.pop("layer", "Mamba1")
    if layer not in SSM:
        raise _refused("ssm_cfg.layer", layer, f"this model has {' and '.join(SSM)}")
    _all_known(given, SSM[layer].keys() | DRAWN | KERNELS, "ssm_cfg.")
    mixer = {SSM[layer][name]: value for name, value in given.items() if name in SSM[layer]}
    if mixer.get("dt_rank") == "auto":
        del mixer["dt_rank"]
    if "activation" in mixer:
        _only(mixer, "activation", ("silu", "swish"), "the convolution has SiLU", "ssm_cfg.")
        mixer["activation"] = "silu"
    if "dt_limit" in mixer:
        mixer["dt_limit"] = _limits(mixer["dt_limit"])
    if "expand" in mixer:
        mixer["expand"] = _whole("ssm_cfg.expand", mixer["expand"])
    return {
        "vocab_size": _size(published, "vocab_size"), "dim": _size(published, "d_model"),
        "layers": _size(published, "n_layer"), "mixer": {"name": MIXER[layer], **mixer},
        "hidden": -(-(published.get("d_intermediate") or 0) // MLP_MULTIPLE) * MLP_MULTIPLE,
        "tied": published.get("tie_embeddings", True),
        "vocab_multiple": published.get("pad_vocab_size_multiple", 8),
        "residual_in_fp32": published.get("residual_in_fp32", True),
    }  # fmt: skip


def _transformers(published: dict, kind: str) -> dict:
    """A field that is not there has the default of transformers' `MambaConfig` or `Mamba2Config`."""
    own = {
        "mamba": {"time_step_rank", "time_step_limit"},
        "mamba2": {"time_step_rank", "time_step_limit", "head_dim", "n_groups", "num_heads", "chunk_size"},
    }  # fmt: skip
    known = METADATA | UNREAD | own[kind] | {
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand",
        "use_bias", "use_conv_bias", "layer_norm_epsilon", "tie_word_embeddings", "residual_in_fp32", "hidden_act",
        "rms_norm", "intermediate_size", "layer_types", "attn_layer_idx", "attn_cfg", "ssm_cfg", "d_intermediate",
    }  # fmt: skip
    _all_known(published, known)
    _only(published, "hidden_act", ("silu", "swish"), "the mixers have SiLU")
    kinds = set(published.get("layer_types") or ())
    if len(kinds) > 1 or kinds - {"mamba", "mamba2", "linear_attention"}:
        raise _refused("layer_types", sorted(kinds), "all layers of this model are Mamba's")
    dim, expand = _size(published, "hidden_size"), _whole("expand", published.get("expand", 2))
    _only(published, "intermediate_size", (expand * dim,), f"it is expand x hidden_size here, {expand * dim}")
    eps = published.get("layer_norm_epsilon", 1e-5)
    mixer = {
        "name": "s6" if kind == "mamba" else "ssd", "expand": expand, "d_conv": published.get("conv_kernel", 4),
        "d_state": published.get("state_size", 16 if kind == "mamba" else 128),
        "bias": published.get("use_bias", False), "conv_bias": published.get("use_conv_bias", True),
    }  # fmt: skip
    if kind == "mamba":
        rank = published.get("time_step_rank", "auto")
        mixer["dt_rank"] = None if rank == "auto" else rank
    else:
        head_dim = published.get("head_dim", 64)
        heads = expand * dim / head_dim
        _only(published, "num_heads", (heads,), f"heads of {head_dim} make {heads:g}")
        mixer |= {
            "head_dim": head_dim, "groups": published.get("n_groups", 8), "norm_eps": eps,
            "dt_limit": _limits(published.get("time_step_limit", (0.0, float("inf")))),
        }  # fmt: skip
    return {
        "vocab_size": _size(published, "vocab_size"), "dim": dim, "mixer": mixer, "vocab_multiple": 1,
        "layers": _size(published, "num_hidden_layers"), "norm_eps": eps,
        "tied": published.get("tie_word_embeddings", kind == "mamba"),
        "residual_in_fp32": published.get("residual_in_fp32", True),
    }  # fmt: skip


def _refused(name: str, value, why: str) -> ZooError:
    return ZooError(f"config.json: {name}: {value!r} is not supported, {why}; give another folder")


def _only(given: dict, name: str, valid: tuple, why: str, place: str = "") -> None:
    if given.get(name, valid[0]) not in valid:
        raise _refused(place + name, given[name], why)


def _all_known(given: dict, known: frozenset | set, place: str = "") -> None:
    strange = sorted(name for name in given if name not in known and not name.startswith("_"))
    if strange:
        why = "this model does not know it, and it may change the outputs"
        raise _refused(place + strange[0], given[strange[0]], why)


def _size(published: dict, name: str) -> int:
    value = published.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ZooError(f"config.json: {name}: expected a whole number from 1, got {value!r}; mend the file")
    return value


def _whole(name: str, value) -> int:
    if isinstance(value, (int, float)) and float(value).is_integer() and value >= 1:
        return int(value)
    raise _refused(name, value, "inner widths are whole multiples of the model's")


def _limits(bounds) -> tuple[float, float]:
    """Bounds of the time step; transformers writes what is infinite as {"__float__": "Infinity"}."""
    return tuple(float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in bounds)
