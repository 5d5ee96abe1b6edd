"""MambaLM against transformers with the same weights, in both published layouts; generation; sizes; hybrids."""

import json

import pytest
import statezoo
import torch
from safetensors.torch import load_file, save_file
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.backbones.mamba_lm import MambaLM, choose, read_config
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers.base import SeqContext

transformers = pytest.importorskip("transformers")
VOCAB = 61


def hf(kind, **more):
    """A small random transformers model with weights away from their initial values, and its config."""
    torch.manual_seed(0)
    if kind == "mamba":
        config = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=5, **more)
        model = transformers.MambaForCausalLM(config)
    else:
        config = transformers.Mamba2Config(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=16, num_heads=4,
            expand=2, chunk_size=8, **{"n_groups": 1, "tie_word_embeddings": False, **more},
        )  # fmt: skip
        model = transformers.Mamba2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_log" not in name and "dt_bias" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), config


def folder_of(model, config, place, layout, file):
    """The model as a published folder."""
    place.mkdir(exist_ok=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    published = config.to_dict()
    if layout == "state-spaces":
        weights = {name.replace("embeddings", "embedding"): tensor for name, tensor in weights.items()}
        ssm = {"layer": "Mamba1", "d_state": 5}
        if config.model_type == "mamba2":
            ssm = {"layer": "Mamba2", "d_state": 8, "headdim": 16, "chunk_size": 8}
        published = {
            "d_model": 32, "n_layer": 2, "vocab_size": VOCAB, "ssm_cfg": ssm, "rms_norm": True,
            "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
            "tie_embeddings": config.tie_word_embeddings,
        }  # fmt: skip
        for name in ("backbone.embedding.weight", "lm_head.weight"):  # published rows are padded to a multiple
            if name in weights:
                weights[name] = torch.cat([weights[name], torch.full((3, 32), 7.0)])
    (place / "config.json").write_text(json.dumps(published))
    if file == "bin":
        torch.save(weights, place / "pytorch_model.bin")
    else:
        save_file(weights, place / "model.safetensors")
    return place


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize("layout", ["hf", "state-spaces"])
@pytest.mark.parametrize(("kind", "tied"), [("mamba", True), ("mamba2", False), ("mamba2", True)])
def test_equals_transformers(kind, tied, layout, file, tmp_path):
    theirs, config = hf(kind, **({} if kind == "mamba" else {"tie_word_embeddings": tied}))
    ours = MambaLM.from_pretrained(folder_of(theirs, config, tmp_path / "published", layout, file))
    assert (ours.lm_head is None) == tied
    tokens = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = theirs(tokens).logits, ours(tokens)
    assert found.shape == (2, 21, VOCAB)
    assert float((found - wanted).abs().max()) <= 1e-5


def test_weights_that_do_not_fit_are_refused(tmp_path):
    theirs, config = hf("mamba")
    weights = dict(theirs.state_dict())
    right = {"vocab_size": VOCAB, "dim": 32, "layers": 2, "mixer": {"name": "s6", "d_state": 5}, "vocab_multiple": 1}
    with pytest.raises(ZooError, match="misses layers.2"):
        MambaLM.from_original(weights, **{**right, "layers": 3})
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    with pytest.raises(ZooError, match="tied=False"):
        MambaLM.from_original(weights, **right)
    with pytest.raises(ZooError, match=r"embedding.weight is \(61, 32\), not \(64, 32\); check the config") as told:
        MambaLM.from_original(dict(theirs.state_dict()), **{**right, "vocab_multiple": 8})
    assert "\n" not in str(told.value)
    with pytest.raises(ZooError, match="no pytorch_model.bin"):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        MambaLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("kind", "more"), [("mamba", {}), ("mamba2", {"n_groups": 2}), ("mamba2", {})])
def test_a_folder_that_transformers_saved_is_read(kind, more, tmp_path):
    """Its configuration as it writes it, with what is infinite as a mapping."""
    theirs, _ = hf(kind, **more)
    theirs.save_pretrained(tmp_path)
    ours = MambaLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((ours(tokens) - theirs(tokens).logits).abs().max()) <= 1e-5


def test_a_tied_checkpoint_may_hold_its_matrix_as_the_head_alone(tmp_path):
    theirs, config = hf("mamba")
    folder = folder_of(theirs, config, tmp_path / "published", "hf", "safetensors")
    whole, weights = MambaLM.from_pretrained(folder), dict(theirs.state_dict())
    weights["lm_head.weight"] = weights.pop("backbone.embeddings.weight").clone()
    save_file(weights, folder / "model.safetensors")
    tokens = torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        assert torch.equal(MambaLM.from_pretrained(folder)(tokens), whole(tokens))
    del weights["lm_head.weight"]
    with pytest.raises(ZooError, match=r"misses embedding\.weight"):
        MambaLM.from_original(weights, **whole.config)


PLAIN = {"d_model": 32, "n_layer": 2, "vocab_size": VOCAB}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rms_norm": False}, "rms_norm: False"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer: 'Mamba3'"),
        ({"ssm_cfg": {"d_stat": 8}}, "ssm_cfg.d_stat"),
        ({"ssm_cfg": {"layer": "Mamba1", "headdim": 8}}, "ssm_cfg.headdim"),
        ({"ssm_cfg": {"layer": "Mamba2", "learnable_init_states": True}}, "ssm_cfg.learnable_init_states"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
        ({"attn_cfg": {"num_heads": 4}}, "attn_cfg"),
        ({"bidirectional": True}, "bidirectional"),
        ({"ssm_cfg": {"expand": 1.5}}, "ssm_cfg.expand: 1.5"),
        ({"model_type": "jamba"}, "model_type 'jamba'"),
    ],
)
def test_what_a_state_spaces_config_asks_for_and_is_not_there_is_refused_by_name(change, told):
    with pytest.raises(ZooError, match=f"config.json: {told}") as error:
        read_config({**PLAIN, **change})
    assert "\n" not in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("mamba", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ("mamba2", {"hidden_act": "relu"}, "hidden_act: 'relu'"),
        ("mamba", {"rms_norm": False}, "rms_norm: False"),
        ("mamba", {"intermediate_size": 96}, "intermediate_size: 96"),
        ("mamba2", {"num_heads": 3}, "num_heads: 3"),
        ("mamba", {"expand": 1.5}, "expand: 1.5"),
        ("mamba", {"sliding_window": 8}, "sliding_window"),
        ("mamba", {"quantization_config": {"bits": 8}}, "quantization_config"),
        ("mamba", {"layer_types": ["mamba", "full_attention"]}, "layer_types"),
        ("mamba2", {"ssm_cfg": {"rmsnorm": False}}, "ssm_cfg"),
    ],
)
def test_what_a_transformers_config_asks_for_and_is_not_there_is_refused_by_name(kind, change, told):
    _, config = hf(kind)
    with pytest.raises(ZooError, match=f"config.json: {told}"):
        read_config({**config.to_dict(), **change})


def test_fields_that_change_no_output_are_no_matter():
    _, config = hf("mamba")
    plain = read_config(config.to_dict())
    more = {
        "fused_add_norm": False, "use_mambapy": True, "use_associative_scan": False, "rescale_prenorm_residual": True,
        "initializer_range": 0.5, "time_step_min": 0.1, "time_step_init_scheme": "constant", "torch_dtype": "bfloat16",
        "architectures": ["X"], "transformers_version": "4.39.0", "eos_token_id": 7, "rms_norm": True, "ssm_cfg": {},
        "d_model": 32, "n_layer": 2, "d_inner": 64, "pad_vocab_size_multiple": 8, "_name_or_path": "x",
        "use_cache": False,
    }  # fmt: skip
    assert read_config({**config.to_dict(), **more}) == plain
    assert read_config({**PLAIN, "fused_add_norm": False, "architectures": ["X"]}) == read_config(PLAIN)
    drawn = {"dt_min": 0.01, "dt_max": 0.2, "dt_init": "constant", "dt_scale": 2.0, "dt_init_floor": 1e-3}
    same = {"use_fast_path": False, "dt_rank": "auto"}
    assert read_config({**PLAIN, "ssm_cfg": {**drawn, **same}}) == read_config(PLAIN)


def test_fields_of_mamba_2_reach_the_mixer():
    given = {
        "layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2, "d_ssm": 32, "D_has_hdim": True, "rmsnorm": False,
        "norm_before_gate": True, "dt_limit": [0.1, 0.2], "chunk_size": 16, "conv_bias": False, "bias": True,
        "d_conv": 3, "A_init_range": [1, 2], "use_mem_eff_path": False, "conv_init": 0.1,
    }  # fmt: skip
    model = MambaLM(**read_config({**PLAIN, "ssm_cfg": given, "d_intermediate": 100, "tie_embeddings": False}))
    mixer = model.layers[0].mixer
    assert (mixer.d_state, mixer.head_dim, mixer.groups, mixer.d_ssm, mixer.chunk) == (8, 16, 2, 32, 16)
    assert mixer.norm is None and mixer.dt_limit == (0.1, 0.2) and len(mixer.D) == 32 and mixer.conv1d.bias is None
    assert mixer.in_proj.bias is not None and mixer.conv1d.kernel_size == (3,) and model.lm_head is not None
    assert model.layers[0].mlp.fc2.in_features == 128, "the released MLP's width is a multiple of 128"


def test_a_config_that_lacks_a_size_says_which():
    with pytest.raises(ZooError, match="config.json: d_model"):
        read_config({"n_layer": 2, "vocab_size": VOCAB})
    with pytest.raises(ZooError, match="config.json: hidden_size"):
        read_config({"model_type": "mamba", "num_hidden_layers": 2, "vocab_size": VOCAB})


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_the_residual_stream_is_as_wide_as_published(kind, wide, tmp_path):
    theirs, config = hf(kind, residual_in_fp32=wide)
    ours = MambaLM.from_pretrained(folder_of(theirs, config, tmp_path / "published", "hf", "safetensors"))
    theirs, ours = theirs.to(torch.bfloat16), ours.to(torch.bfloat16)
    tokens, seen = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(1)), {"own": [], "hf": []}
    for block, other in zip(ours.layers, theirs.backbone.layers, strict=True):
        block.register_forward_hook(lambda _, __, out: seen["own"].append(out[0].dtype))
        other.register_forward_hook(lambda _, __, out: seen["hf"].append(out.dtype))
    with torch.no_grad():
        found, wanted = ours(tokens), theirs(tokens).logits
        step, _ = ours.step(tokens[:, 0], ours.init_states(2))
    assert seen["own"] == seen["hf"] == [torch.float32 if wide else torch.bfloat16] * 2
    assert found.dtype == step.dtype == torch.bfloat16
    assert float((found.float() - wanted).abs().mean()) <= 0.01 * float(wanted.abs().mean())


def test_a_float64_model_stays_in_float64():
    model = lm()
    assert model(torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float64


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_bin_file_is_never_unpickled(tmp_path, capsys):
    _, config = hf("mamba")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    torch.save({"backbone.norm_f.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        MambaLM.from_pretrained(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "vocab", "count"),
    # state-spaces/mamba-130m and mamba2-130m as published, head tied: worked out from the shapes of their tensors
    [("mamba_130m", 50277, 129_135_360), ("mamba2_130m", 50277, 128_989_632)],
)
def test_published_sizes(name, vocab, count):
    with torch.device("meta"):
        assert parameter_count(create_model(name, vocab_size=vocab)) == count


def lm(**config):
    torch.manual_seed(0)
    return create_model("mamba_lm", vocab_size=23, dim=16, layers=3, **config).double().eval()


HYBRIDS = {
    "s6": {},
    "ssd": {"mixer": {"name": "ssd", "head_dim": 8, "d_state": 6}},
    "attention": {
        "attention_layers": (1,),
        "attention": {"name": "attention", "heads": 2, "rope": 100.0},
        "hidden": 24,
    },
    "list": {"mixers": ["s6", {"name": "attention", "heads": 2, "window": 4}, {"name": "short_conv", "width": 4}]},
}


@pytest.mark.parametrize("kind", list(HYBRIDS))
def test_generation_by_steps_equals_recomputing(kind):
    model = lm(**HYBRIDS[kind])
    prompt = torch.randint(0, 23, (2, 7), generator=torch.Generator().manual_seed(2))
    made = model.generate(prompt, 9)
    tokens = prompt
    for _ in range(9):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, tokens[:, 7:])


@pytest.mark.parametrize("kind", list(HYBRIDS))
def test_prompts_of_different_lengths_are_continued_as_if_alone(kind):
    model = lm(**HYBRIDS[kind])
    prompt = torch.randint(1, 23, (3, 8), generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([8, 3, 5])
    together = model.generate(prompt, 6, lengths=lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(together[row], model.generate(prompt[row : row + 1, :length], 6)[0])


def test_sampling_follows_the_distribution_and_the_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    draw = torch.Generator().manual_seed(0)
    shares = torch.bincount(choose(logits, 1.0, None, None, draw), minlength=4) / 20_000
    assert torch.allclose(shares, logits[0].softmax(0), atol=0.015)
    assert set(choose(logits, 1.0, 2, None, draw).tolist()) == {1, 2}
    assert set(choose(logits, 1.0, None, 0.6, draw).tolist()) == {2}  # 0.64 alone reaches 0.6
    assert set(choose(logits, 1.0, None, 0.7, draw).tolist()) == {1, 2}
    assert torch.equal(choose(logits, 0.0, None, None, draw), torch.full((20_000,), 2))
    model, prompt = lm(), torch.zeros(1, 3, dtype=torch.int64)
    one, same, other = (model.generate(prompt, 12, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 0]])


@pytest.mark.parametrize("kind", ["s6", "ssd", "attention"])
def test_nothing_to_generate_is_no_error(kind):
    model = lm(**HYBRIDS[kind])
    assert model.generate(PROMPT, 0).shape == (2, 0)
    assert model.generate(PROMPT[:0], 4).shape == (0, 4)
    assert model.generate(PROMPT[:0], 0).shape == (0, 0)
    assert model.generate(PROMPT, 0).dtype == model.generate(PROMPT[:0], 4).dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": -1}, "steps: expected"),
        ({"steps": 2.5}, "steps: expected"),
        ({"temperature": -0.5}, "temperature: expected"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"temperature": float("inf")}, "temperature: expected"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"top_p": 1.5}, "top_p: expected"),
        ({"top_p": -0.1}, "top_p: expected"),
        ({"top_p": float("nan")}, "top_p: expected"),
        ({"top_k": -1}, "top_k: expected"),
        ({"top_k": 2.5}, "top_k: expected"),
        ({"prompt": PROMPT[:, :0]}, "prompt: expected"),
        ({"prompt": PROMPT[0]}, "prompt: expected"),
        ({"prompt": PROMPT[0, 0]}, "prompt: expected"),
        ({"prompt": [[1, 2]]}, "prompt: expected a tensor"),
        ({"prompt": PROMPT.float()}, "prompt: expected"),
        ({"prompt": PROMPT + 20}, "prompt: expected tokens from 0 to 22, got 23"),
        ({"prompt": PROMPT - 1}, "prompt: expected tokens from 0 to 22, got -1"),
        ({"lengths": torch.tensor([3, 0])}, "lengths: expected"),
        ({"lengths": torch.tensor([3, 4])}, "lengths: expected"),
        ({"lengths": torch.tensor([3])}, "lengths: expected"),
        ({"lengths": torch.tensor([3.0, 2.0])}, "lengths: expected"),
    ],
)
def test_what_generation_cannot_mean_is_refused(given, told):
    with pytest.raises(ZooError, match=told) as error:
        lm().generate(**{"prompt": PROMPT, "steps": 2, "temperature": 1.0, **given})
    assert "\n" not in str(error.value)


def test_limits_that_limit_nothing():
    """A `top_k` of 0, as in the field's libraries, or above the vocabulary; a `top_p` of 1."""
    model = lm()
    wanted = model.generate(PROMPT, 8, temperature=1.0)
    for given in ({"top_k": 0}, {"top_k": 99}, {"top_p": 1.0}, {"top_p": 1}):
        assert torch.equal(model.generate(PROMPT, 8, temperature=1.0, **given), wanted)
    one = model.generate(PROMPT, 8, temperature=1.0, top_p=1e-9)
    assert torch.equal(one, model.generate(PROMPT, 8)) and torch.equal(one, model.generate(PROMPT, 8, top_k=1))


def test_a_model_that_looks_ahead_does_not_generate():
    for mixer in ({"name": "attention", "heads": 2, "causal": False}, {"name": "s4d", "bidirectional": True}):
        with pytest.raises(ZooError, match="look at later tokens"):
            lm(mixer=mixer).generate(PROMPT, 2)


@pytest.mark.parametrize("kind", ["s6", "ssd"])
def test_generation_needs_constant_memory(kind):
    model = lm(**HYBRIDS[kind])
    states = model.init_states(2)
    sizes = [tensor.shape for state in states for tensor in state.values()]
    for _ in range(20):
        _, states = model.step(torch.zeros(2, dtype=torch.int64), states)
    assert [tensor.shape for state in states for tensor in state.values()] == sizes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s6", "ssd", "list"])
def test_compiled_steps_say_the_same(kind):
    model, prompt = lm(**HYBRIDS[kind]), torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(model.generate(prompt, 12, compiled=True), model.generate(prompt, 12))


def test_one_row_of_bfloat16_leaves_onednn_as_it_was():
    model, seen = lm().to(torch.bfloat16), []
    model.norm_f.register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    for rows in (1, 2):
        model.step(torch.zeros(rows, dtype=torch.int64), model.init_states(rows))
    assert seen == [False, True] and torch.backends.mkldnn.enabled


def test_packed_sequences_are_what_each_is_alone():
    model = lm()
    tokens = torch.randint(0, 23, (1, 9), generator=torch.Generator().manual_seed(3))
    ctx = SeqContext(segments=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]))
    with torch.no_grad():
        packed = model.run(tokens, ctx)[0]
        alone = torch.cat([model.run(tokens[:, :4])[0], model.run(tokens[:, 4:])[0]], 1)
    assert torch.allclose(packed, alone, atol=1e-10)


def test_every_layer_is_named_once():
    with pytest.raises(ZooError, match="name every layer once"):
        lm(mixers=["s6"])
    with pytest.raises(ZooError, match="did you mean 'ssd'"):
        lm(mixer="sssd")


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_was_saved_in_another_precision_is_loaded(cast, tmp_path):
    torch.manual_seed(0)
    model = MambaLM(11, dim=16, layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(cast).save(tmp_path, "mamba_lm")
    loaded = statezoo.load(tmp_path).state_dict()
    assert loaded.keys() == before.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == before[name].dtype
        torch.testing.assert_close(tensor, before[name], rtol=2**-7, atol=1e-6)


def test_numbers_of_another_kind_are_refused(tmp_path):
    MambaLM(11, dim=16, layers=2).save(tmp_path, "mamba_lm")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"embedding.weight": weights["embedding.weight"].long()}, file)
    with pytest.raises(ZooError, match=r"does not fit the model: 1 differ \(embedding.weight is .* torch.int64, not"):
        statezoo.load(tmp_path)
