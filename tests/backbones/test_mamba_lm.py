"""MambaLM against transformers with the same weights, in both published layouts; generation; sizes; hybrids."""

import json

import pytest
import torch
from safetensors.torch import save_file
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.backbones.mamba_lm import MambaLM, choose
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
            n_groups=1, expand=2, chunk_size=8, **{"tie_word_embeddings": False, **more},
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
    with pytest.raises(ZooError, match="no pytorch_model.bin"):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        MambaLM.from_pretrained(tmp_path)


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
