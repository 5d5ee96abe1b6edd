"""Tasks that train all positions at once refuse models that look ahead, whoever wrote them and whatever they state."""

import random

import numpy as np
import pytest
import torch
from statezoo.zoo.api import create_dataset, create_model
from statezoo.zoo.backbones.base import Fitted, Model
from statezoo.zoo.errors import ZooError
from statezoo.zoo.registry import entries, find
from statezoo.zoo.train.run import train
from torch import nn

WIDE = 12


def sample(kind):
    return create_dataset("characters").sample() if kind == "tokens" else create_dataset("ml-100k").sample(max_len=12)


DATA = {}


def data(kind):
    if kind not in DATA:
        DATA[kind] = sample(kind)
        DATA[kind].prepare()
    return DATA[kind]


def accept(model, kind="tokens"):
    name = "language_model" if kind == "tokens" else "next_item"
    task = find("task", name).load()(model, data(kind).prepare())
    task.accept(data(kind))
    return task


class Written(Model):
    """What a user writes: an embedding, `mix` over (B, L, WIDE), a head; says that it is causal."""

    accepts, inputs, causal = ("tokens",), ("tokens",), True

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(300, WIDE), nn.Linear(WIDE, 300)
        self.make()

    def make(self):
        pass

    def forward_features(self, tokens):
        return self.mix(self.embedding(tokens))

    def forward_head(self, features):
        return self.head(features)


class GRU(Written):
    both = True

    def make(self):
        self.gru = nn.GRU(WIDE, WIDE // 2, batch_first=True, bidirectional=self.both)
        self.out = nn.Linear(WIDE if self.both else WIDE // 2, WIDE)

    def mix(self, x):
        return self.out(self.gru(x)[0])


class OneWayGRU(GRU):
    both = False


class Convolution(Written):
    left, right = 2, 1

    def make(self):
        self.conv = nn.Conv1d(WIDE, WIDE, self.left + self.right + 1)

    def mix(self, x):
        return self.conv(nn.functional.pad(x.transpose(1, 2), (self.left, self.right))).transpose(1, 2)


class CausalConvolution(Convolution):
    left, right = 3, 0


class SelfAttention(Written):
    masked = False

    def make(self):
        self.attention = nn.MultiheadAttention(WIDE, 2, batch_first=True)

    def mix(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.masked else None
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class MaskedAttention(SelfAttention):
    masked = True


class MeanSoFar(Written):
    def mix(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class SharesOfTheWhole(Written):
    def mix(self, x):
        return x.cumsum(1) / (1 + x.abs().sum(1, keepdim=True))


class OverTime(Written):
    """A norm for each channel, over the sequence."""

    def make(self):
        self.norm = nn.InstanceNorm1d(WIDE)

    def mix(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class BatchNorm(OverTime):
    def make(self):
        self.norm = nn.BatchNorm1d(WIDE)


class BatchNormOfTheBatch(OverTime):
    def make(self):
        self.norm = nn.BatchNorm1d(WIDE, track_running_stats=False)


class RollsInTraining(Written):
    def mix(self, x):
        return x + (torch.roll(x, -1, 1) if self.training else 0)


class CentredInTraining(Written):
    def mix(self, x):
        return x - x.mean(1, keepdim=True) if self.training else x


class OneStepInTraining(Written):
    """Step 6 alone sees step 7, behind dropout."""

    def mix(self, x):
        x = nn.functional.dropout(x, 0.2, self.training).clone()
        if self.training:
            x[:, 6] = x[:, 6] + x[:, 7]
        return x


class RollsWithGradients(Written):
    def mix(self, x):
        return x + (torch.roll(x, -1, 1) if torch.is_grad_enabled() else 0)


class HeldInTraining(RollsInTraining):
    def make(self):
        self.shared = self.head.weight * 1  # no leaf, which cannot be copied


class DropsInTraining(OneWayGRU):
    def mix(self, x):
        return super().mix(nn.functional.dropout(x, 0.5, self.training))


class DrawsItself(Written):
    """Noise from a generator of its own, in training."""

    def make(self):
        self.draw = np.random.default_rng(0)

    def mix(self, x):
        return x + float(self.draw.standard_normal()) if self.training else x


class KeepsAMean(Written):
    """Subtracts a mean over what it saw before, which training moves on."""

    def make(self):
        self.register_buffer("mean", torch.zeros(WIDE))

    def mix(self, x):
        y = x - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return y


class OverTheBatch(Written):
    """Odd, but it looks at no later step."""

    def mix(self, x):
        return x - x.mean(0, keepdim=True)


class OneStep(Written):
    """Step 6 alone sees step 7."""

    def mix(self, x):
        x = x.clone()
        x[:, 6] = x[:, 6] + x[:, 7]
        return x


class LastStep(Written):
    def mix(self, x):
        return x + 1e-6 * x[:, -1:]


class FarAhead(Written):
    def mix(self, x):
        return x + nn.functional.pad(x[:, x.shape[1] - 3 :], (0, 0, 0, x.shape[1] - 3))


class BeginsClosed(Written):
    """A branch that looks ahead behind a gate that starts at zero."""

    def make(self):
        self.gate = nn.Parameter(torch.zeros(WIDE))

    def mix(self, x):
        return x + self.gate * x.flip(1)


class BoundToFloat32(Written):
    """Its product with a table in float32 fails for anything else."""

    def mix(self, x):
        return x @ torch.ones(WIDE, WIDE)


class LeakInFloat32(BoundToFloat32):
    def mix(self, x):
        return super().mix(x) + 1e-3 * x.flip(1) @ torch.ones(WIDE, WIDE)


class FourierInFloat32(Written):
    """A causal convolution by FFT that goes down to float32: earlier outputs move by rounding."""

    def mix(self, x):
        steps = x.shape[1]
        kernel = torch.exp(-0.1 * torch.arange(steps, dtype=torch.float32))[:, None]
        spectrum = torch.fft.rfft(x.float(), 2 * steps, dim=1) * torch.fft.rfft(kernel, 2 * steps, dim=0)
        return torch.fft.irfft(spectrum, 2 * steps, dim=1)[:, :steps].to(x.dtype)


class AlwaysDrops(Written):
    def mix(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Counts(Written):
    """Keeps a number in a buffer; nothing of it reaches the output."""

    def make(self):
        self.register_buffer("calls", torch.zeros(()))

    def mix(self, x):
        self.calls += 1
        return x


class Whole(Written):
    def mix(self, x):
        return x.mean(1)


LEAKS = [
    GRU, Convolution, SelfAttention, SharesOfTheWhole, OverTime, BatchNormOfTheBatch, OneStep, LastStep, FarAhead,
    BeginsClosed, LeakInFloat32,
]  # fmt: skip
LEAKS_IN_TRAINING = [
    RollsInTraining, CentredInTraining, OneStepInTraining, RollsWithGradients, HeldInTraining, BatchNorm,
]  # fmt: skip
SOUND = [
    OneWayGRU, CausalConvolution, MaskedAttention, MeanSoFar, OverTheBatch, BoundToFloat32, FourierInFloat32,
    AlwaysDrops, Counts, DropsInTraining, DrawsItself, KeepsAMean,
]  # fmt: skip


@pytest.mark.parametrize("cls", LEAKS)
def test_a_model_that_looks_ahead_is_refused_whatever_it_states(cls):
    torch.manual_seed(0)
    with pytest.raises(ZooError, match="looks ahead: its output at step .*; choose a causal model") as told:
        accept(cls())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cls", LEAKS_IN_TRAINING)
def test_a_model_that_looks_ahead_only_while_it_trains_is_refused(cls):
    torch.manual_seed(0)
    with pytest.raises(ZooError, match="looks ahead in training: its output at step .*; choose a causal model"):
        accept(cls())


@pytest.mark.parametrize("cls", SOUND)
def test_a_causal_model_passes(cls):
    torch.manual_seed(0)
    assert accept(cls()).model.causal


def test_a_model_that_gives_no_output_for_each_step_is_refused():
    with pytest.raises(ZooError, match="not one at each step"):
        accept(Whole())


def test_a_model_that_does_not_state_it_is_refused():
    class Silent(OneWayGRU):
        causal = False

    with pytest.raises(ZooError, match="not causal"):
        accept(Silent())


@pytest.mark.parametrize(
    "config",
    [
        {"mixer": {"name": "s4d", "bidirectional": True}},
        {"mixer": {"name": "mlstm", "heads": 2, "bidirectional": True}},
        {"mixer": {"name": "attention", "heads": 2, "causal": False}},
        {"attention_layers": (1,), "attention": {"name": "attention", "heads": 2, "causal": False}},
        {"mixers": ["s6", {"name": "s4d", "bidirectional": True}]},
    ],
)
def test_mixers_decide_whether_a_language_model_is_causal(config):
    model = create_model("mamba_lm", vocab_size=300, dim=16, layers=2, **config)
    assert not model.causal and create_model("mamba_lm", vocab_size=300, dim=16, layers=2).causal
    with pytest.raises(ZooError, match="MambaLM is not causal.*; choose"):
        accept(model)
    model.__class__ = type("Liar", (type(model),), {"causal": True})
    with pytest.raises(ZooError, match="Liar states `causal` but looks ahead"):
        accept(model)


def test_nothing_is_trained_with_a_mixer_that_looks_ahead(tmp_path):
    change = ["model.mixer={name: s4d, bidirectional: true}", "train.max_steps=1"]
    with pytest.raises(ZooError, match="not causal"):
        train("mamba_lm/characters", change, sample=True, folder=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    "config", [{"bidirectional": True}, {"mixer": {"name": "s4d", "bidirectional": True}, "layers": 2}]
)
def test_mixers_decide_whether_a_recommender_is_causal(config):
    size = data("log").prepare().size("num_items")
    model = create_model("mamba4rec", num_items=size, dim=16, **config)
    assert not model.causal
    with pytest.raises(ZooError, match="set data.windows=per-prefix"):
        accept(model, "log")
    with pytest.raises(ZooError, match="looks at later events"):
        model.init_states(1)


def wrapped(model, change):
    """A recommender whose features go through `change(features, items, times, length)`."""

    class Changed(type(model)):
        def forward_features(self, items, times, length):
            return change(super().forward_features(items, times, length), items, times, length)

    model.__class__ = Changed
    return model


def tim4rec():
    torch.manual_seed(0)
    spec = data("log").prepare()
    return create_model("tim4rec", num_items=spec.size("num_items"), max_len=12, dim=16, d_state=8, head_dim=8)


@pytest.mark.parametrize(
    ("through", "change"),
    [
        ("items", lambda x, items, times, length: x + 1e-3 * items[:, -1, None, None]),
        ("items", lambda x, items, times, length: x + 1e-3 * items.gather(1, length[:, None] - 1)[..., None]),
        ("times", lambda x, items, times, length: x + 1e-3 * (times[:, -1:] - times)[..., None].double().log1p()),
        ("times", lambda x, items, times, length: x + (times[:, 1:] - times[:, :-1]).amin(1)[:, None, None] * 1e-3),
    ],
)
def test_what_leaks_is_named(through, change):
    with pytest.raises(ZooError, match=rf"looks ahead: .*inputs \({through}\).*; set data.windows=per-prefix"):
        accept(wrapped(tim4rec(), change), "log")


def test_the_length_is_no_later_step():
    accept(wrapped(tim4rec(), lambda x, items, times, length: x + length[:, None, None]), "log")


@pytest.mark.parametrize("scale", ["past", "seconds"])
def test_a_gap_is_scaled_by_gaps_before_it(scale):
    size = data("log").prepare().size("num_items")
    assert accept(create_model("tisasrec", num_items=size, max_len=12, dim=16, scale=scale), "log").model.causal


def test_the_published_scale_of_gaps_looks_at_later_ones():
    size = data("log").prepare().size("num_items")
    model = create_model("tisasrec", num_items=size, max_len=12, dim=16, scale="window")
    assert not model.causal
    with pytest.raises(ZooError, match="TiSASRec is not causal.*per-prefix"):
        accept(model, "log")


def test_a_model_that_fills_gaps_may_look_both_ways():
    size = data("log").prepare().size("num_items")
    assert not accept(create_model("bert4rec", num_items=size, max_len=12, dim=16), "log").model.causal


class Reader(Fitted):
    """Fitted, and gives each step the token that comes next."""

    accepts, inputs, given = ("tokens",), ("tokens",), ("vocab_size",)
    ahead = 1

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def fit(self, part, spec):
        pass

    def predict(self, tokens):
        return np.eye(self.vocab_size, dtype=np.float32)[np.roll(tokens, -self.ahead, 1)]


class Repeater(Reader):
    ahead = 0


def test_a_fitted_language_model_is_looked_at_once_it_is_fitted():
    size = data("tokens").prepare().size("vocab_size")
    task = accept(Reader(size))
    with pytest.raises(ZooError, match="Reader states `causal` but looks ahead"):
        task.accept_fitted(data("tokens"))
    accept(Repeater(size)).accept_fitted(data("tokens"))


def test_fitted_recommenders_are_given_the_past_alone():
    size = data("log").prepare().size("num_items")
    task = accept(create_model("item-knn", num_items=size), "log")
    task.model.fit(data("log").part("train"), data("log").prepare())
    task.accept_fitted(data("log"))


def test_the_check_leaves_no_trace():
    model = Counts().train()
    model.head.eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    accept(model)
    assert model.training and not model.head.training and model.calls == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))


def test_a_model_that_cannot_be_copied_is_looked_at_as_it_is():
    class Held(GRU):
        def make(self):
            super().make()
            self.shared = self.head.weight * 1  # no leaf, which cannot be copied

    class Sound(Held):
        both = False

    with pytest.raises(ZooError, match="looks ahead"):
        accept(Held())
    model = Sound().train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accept(model)
    assert model.training and all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


def test_training_in_the_check_moves_no_buffer():
    class Held(KeepsAMean):
        def make(self):
            super().make()
            self.shared = self.head.weight * 1  # no leaf, so that the model itself is run

    for cls in (KeepsAMean, Held):
        model = cls().train()
        mean = model.mean
        accept(model)
        assert model.mean is mean and not mean.any()


def test_predicting_asks_for_no_training_data():
    dataset = create_dataset("characters")
    task = find("task", "language_model").load()(GRU(), data("tokens").prepare())
    task.accept(dataset)
    assert dataset._prepared is None


CAUSAL = [
    key
    for key, entry in entries("model").items()
    if not issubclass(entry.load(), Fitted) and set(entry.load().accepts) & {"tokens", "log"}
    and key not in ("bert4rec", "tim4rec.reference")
]  # fmt: skip


@pytest.mark.parametrize("key", CAUSAL)
def test_every_causal_model_of_the_registry_passes(key):
    entry = find("model", key)
    cls = entry.load()
    kind = cls.accepts[0]
    torch.manual_seed(0)
    model = cls.from_spec(data(kind).prepare(), **{**entry.config, **cls.tiny})
    assert model.causal
    accept(model, kind)
