"""The S4D classifier: size, order of pixels, heads, and digits read pixel by pixel."""

from statistics import mean

import pytest
import torch
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.files import read_json
from statezoo.zoo.train.run import train


def build(**options):
    torch.manual_seed(0)
    return create_model("s4d", **{"in_channels": 3, "num_outputs": 5, "dim": 8, "layers": 2, "d_state": 4} | options)


def test_size():
    # per layer: dt and D, A and C (two numbers per pair each), the projection to 2 dim, the norm
    layer = 2 * 128 + 2 * 128 * 32 + 2 * 128 * 32 + (128 * 256 + 256) + 2 * 128
    head = 128 * 10 + 10
    model = create_model("s4d", in_channels=3, num_outputs=10, init="lin")
    assert parameter_count(model) == 3 * 128 + 128 + 4 * layer + head  # the "200k parameters" of the released example


def test_pixels_come_row_by_row():
    model, image, seen = build().eval(), torch.randn(2, 3, 4, 6), []
    model.encoder.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    model(image)
    rows = [image[:, :, i, j] for i in range(4) for j in range(6)]
    assert torch.equal(seen[0], torch.stack(rows, 1))


@pytest.mark.parametrize("prenorm", [False, True])
def test_features_are_the_layers_one_after_another(prenorm):
    model, image = build(prenorm=prenorm).eval(), torch.randn(2, 3, 4, 6)
    x = model.encoder(image.flatten(2).transpose(1, 2))
    for layer in model.layers:
        x = x + layer.mixer(layer.norm(x)).y if prenorm else layer.norm(x + layer.mixer(x).y)
    x = torch.nn.functional.layer_norm(x, (8,)) if prenorm else x
    assert torch.allclose(model.forward_features(image), x.mean(1), atol=1e-6)


def test_heads():
    model, image = build(num_outputs=0).eval(), torch.randn(2, 3, 5, 5)
    assert torch.equal(model(image), model.forward_features(image)) and model(image).shape == (2, 8)
    model.reset_head(7)
    assert model(image).shape == (2, 7)


def test_options_reach_every_mixer():
    options = {"discretization": "bilinear", "bidirectional": True, "n_ssm": 2, "train_B": True, "init": "inv"}
    model = build(**options, dropout=0.3, dt_min=0.2, dt_max=0.2)
    for layer in model.layers:
        mixer = layer.mixer
        assert (mixer.discretization, mixer.bidirectional, mixer.sets) == ("bilinear", True, 2)
        assert mixer.B.requires_grad and mixer.dropout.p == layer.dropout.p == 0.3
        assert torch.allclose(mixer.log_dt.exp(), torch.full((8,), 0.2))
        assert float(mixer.A_imag.detach()[0, 0]) == pytest.approx(4 / torch.pi * 3)


@pytest.mark.slow
def test_digits_pixel_by_pixel_reach_97_percent(tmp_path):
    """The recipe, three seeds: about 80 s of one CPU core each."""
    accuracy = []
    for seed in range(3):
        run = train("s4d/digits", [f"seed={seed}", "train.logger=null"], folder=tmp_path / str(seed), quiet=True)
        accuracy.append(read_json(run / "record.json")["metrics"]["accuracy"]["value"])
    assert mean(accuracy) >= 0.97, accuracy
