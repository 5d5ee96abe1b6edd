"""Recommendation models: sizes worked out by hand, padding without effect, and what the counting models count."""

import numpy as np
import pytest
import torch
from statezoo.zoo.api import create_dataset, create_model
from statezoo.zoo.backbones.base import parameter_count


def test_sasrec_size():
    # items and positions, the input norm, and per layer: qkv and out, two FFN matrices, two norms
    items, positions, norm = 1350 * 64, 50 * 64, 2 * 64
    layer = (64 * 192 + 192) + (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64) + 2 * 2 * 64
    assert parameter_count(create_model("sasrec", num_items=1349)) == items + positions + norm + 2 * layer


def test_gru4rec_size():
    gru = 3 * 128 * (64 + 128)
    assert parameter_count(create_model("gru4rec", num_items=1349)) == 1350 * 64 + gru + 128 * 64 + 64


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_right_padding_changes_nothing(name):
    torch.manual_seed(0)
    model = create_model(name, num_items=20).eval()
    items = torch.randint(1, 21, (3, 9))
    padded = torch.cat([items, torch.zeros(3, 4, dtype=torch.int64)], 1)
    assert torch.allclose(model.forward_features(items), model.forward_features(padded)[:, :9], atol=1e-5)


def test_popularity_counts_training_events_only():
    data = create_dataset("ml-100k").sample()
    model = create_model("popularity", num_items=data.prepare().size("num_items"))
    model.fit(data.part("train"), data.prepare())
    log = data._log.arrays
    count = np.zeros(len(model.count))
    for user in range(len(log["start"]) - 1):
        for place in range(log["start"][user], log["train_end"][user]):
            count[log["item"][place]] += 1
    assert np.array_equal(model.count, count)
    assert count.sum() == len(log["item"]) - 2 * 400, "two events of each of the 400 users are targets"


@pytest.mark.parametrize(("shrink", "decay"), [(0.0, 1.0), (5.0, 0.5)])
def test_item_knn_equals_the_formula(shrink, decay):
    data = create_dataset("ml-100k").sample()
    spec = data.prepare()
    n = spec.size("num_items")
    model = create_model("item-knn", num_items=n, neighbours=7, shrink=shrink, decay=decay)
    model.fit(data.part("train"), spec)
    user, item = data.part("train").events()
    seen = np.zeros((user.max() + 1, n + 1))
    seen[user, item] = 1
    degree = np.sqrt(seen.sum(0))
    similar = (seen.T @ seen) / (np.outer(degree, degree) + shrink + 1e-12)
    np.fill_diagonal(similar, 0)
    for row in similar:  # keep the seven largest
        row[np.argsort(-row.astype(np.float32), kind="stable")[7:]] = 0
    batch = data.part("test").batch(np.arange(20))
    scores = model.predict(batch["items"], batch["length"])
    for b in range(20):
        history = batch["items"][b, : batch["length"][b]]
        expected = sum(decay ** (len(history) - 1 - t) * similar[i] for t, i in enumerate(history))
        assert np.allclose(scores[b, 1:], expected[1:], atol=1e-4)
