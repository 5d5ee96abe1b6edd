"""One vector for each sample: what the last layer sees, by the model itself and behind `zoo predict --features`."""

import numpy as np
import pandas as pd
import pytest
import torch
from statezoo.zoo.api import create_model, load
from statezoo.zoo.backbones.base import Fitted, Model
from statezoo.zoo.cli import main
from statezoo.zoo.contracts import distinct_models, sample_for
from statezoo.zoo.data.ply import write_cloud
from statezoo.zoo.errors import ZooError
from statezoo.zoo.registry import find

NETWORKS = [key for key in distinct_models() if not issubclass(find("model", key).load(), Fitted)]


def built(key, count=4):
    """A tiny model away from its initial weights, in evaluation, and a batch of its sample."""
    entry = find("model", key)
    cls = entry.load()
    data = sample_for(cls)
    torch.manual_seed(0)
    model = cls.from_spec(data.prepare(), **{**entry.config, **cls.tiny}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    arrays = data.part("test").batch(np.arange(count))
    batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return model, batch, [batch[name] for name in model.inputs]


@pytest.mark.parametrize("key", NETWORKS)
def test_the_head_on_pooled_features_is_the_output(key):
    model, batch, inputs = built(key)
    with torch.no_grad():
        pooled, whole = model.pooled_features(*inputs), model(*inputs)
        assert pooled.ndim == 2 and len(pooled) == 4 and pooled.isfinite().all()
        assert float((pooled[0] - pooled[1]).abs().max()) > 0
        if whole.ndim == 3 and "points" in model.accepts:
            return  # a class or a place for each point: the vector is none of the head's inputs
        if whole.ndim == 3:
            length = batch["length"] if "length" in batch else (inputs[0] != 0).sum(1)
            whole = whole[torch.arange(4), length - 1]
        assert torch.allclose(model.forward_head(pooled), whole, atol=1e-5)


SEQUENCES = ["mamba_lm", "mamba2_lm", "sasrec", "gru4rec", "ssd4rec", "tim4rec", "tisasrec", "bert4rec"]


@pytest.mark.parametrize("key", SEQUENCES)
def test_padding_is_no_part_of_them(key):
    model, _, inputs = built(key)
    short, longer = [], []
    for tensor in inputs:
        if tensor.ndim == 1:
            tensor = torch.full_like(tensor, 5)
            short.append(tensor), longer.append(tensor)
        else:
            short.append(tensor[:, :5]), longer.append(torch.nn.functional.pad(tensor[:, :5], (0, 4)))
    with torch.no_grad():
        assert torch.allclose(model.pooled_features(*short), model.pooled_features(*longer), atol=1e-5)


def test_a_language_model_that_looks_both_ways_gives_the_mean_over_its_tokens():
    torch.manual_seed(0)
    mixer = {"name": "s4d", "bidirectional": True, "d_state": 4}
    model = create_model("mamba_lm", vocab_size=20, dim=8, layers=2, mixer=mixer).double().eval()
    tokens = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        pooled = model.pooled_features(tokens)
        for row, length in enumerate((4, 6)):
            alone = model.forward_features(tokens[row : row + 1, :length]).mean(1)[0]
            assert torch.allclose(pooled[row], alone, atol=1e-10)


def test_segmenters_take_the_maximum_over_their_points():
    for key in ("pointnet_seg", "point_ssm_seg"):
        model, _, inputs = built(key)
        with torch.no_grad():
            assert torch.equal(model.pooled_features(*inputs), model.forward_features(*inputs).amax(1))


class Pools(Model):
    """A user's model that pools in its head."""

    accepts, inputs = ("image",), ("image",)

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)

    def forward_features(self, image):
        return image.flatten(2)

    def forward_head(self, features):
        return self.head(features.mean(1))


def test_a_model_that_pools_elsewhere_must_say_how():
    with pytest.raises(ZooError, match=r"Pools gives features \(2, 5, 4\).*implement pooled_features"):
        Pools().pooled_features(torch.randn(2, 5, 2, 2))


def test_predict_writes_what_the_model_gives(tmp_path):
    quick = ["--sample", "train.max_steps=2", "train.logger=null", "--folder"]
    for number, source in enumerate(("sasrec/log", "tim4rec/log", "bert4rec/log")):
        run, new = tmp_path / f"run{number}", tmp_path / "new.csv"
        assert main(["train", source, *quick, str(run)]) == 0
        names = pd.read_json(run / "prep" / "spec.json", typ="series")["inputs"]["vocabulary"]
        new.write_text("user,item,rating,time\n" + "".join(f"ann,{names[i]},5,{i}\n" for i in (3, 8, 1)))
        out = tmp_path / "features.csv"
        assert main(["predict", str(run), "--log", str(new), "--features", "--out", str(out)]) == 0
        model = load(run)
        items, times = torch.zeros(2, 20, dtype=torch.int64), torch.zeros(2, 20, dtype=torch.int64)
        items[:, :3], times[:, :3] = torch.tensor([2, 4, 9]), torch.tensor([1, 3, 8])
        given = {"items": items, "times": times, "length": torch.tensor([3, 3])}
        with torch.no_grad():
            wanted = model.pooled_features(*(given[name] for name in model.inputs))[0]
        assert np.allclose(pd.read_csv(out).iloc[0, 1:].astype(float), wanted.numpy(), atol=1e-5)


def test_predict_writes_one_vector_for_a_cloud_of_labelled_points(tmp_path):
    run, new, out = tmp_path / "run", tmp_path / "new", tmp_path / "features.csv"
    quick = ["--sample", "train.max_steps=1", "train.logger=null", "train.batch_size=4", "--folder", str(run)]
    assert main(["train", "pointnet_seg/medpoints-segmentation", *quick]) == 0
    write_cloud(new / "a.ply", np.random.default_rng(0).normal(size=(300, 3)))
    assert main(["predict", str(run), str(new), "--features", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["id"].tolist() == ["a"] and table.shape[1] == 1 + load(run).width
