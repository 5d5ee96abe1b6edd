"""Where time carries information, the causal time track finds it: five seeds on the sample's process, 2,400 users.

`pytest -m slow -s` prints the difference of the published track too.
"""

import numpy as np
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_sample import generate
from statezoo.zoo.metrics import replicates
from statezoo.zoo.train.rows import load_rows
from statezoo.zoo.train.run import train

SMALL = ["model.dim=32", "model.d_state=16", "model.head_dim=16", "model.dropout=0.1", "model.time_dropout=0.1"]
SHORT = ["train.epochs=15", "train.batch_size=64", "train.lr=0.003", "train.logger=null"]
SEEDS = range(5)


@pytest.mark.slow
def test_the_causal_track_beats_none_on_the_sample(tmp_path):
    adapter = create_dataset("log")
    (tmp_path / "data").mkdir()
    adapter.write_file(tmp_path / "data" / "log.csv", generate(0, users=2400))
    source = [f"data.root={tmp_path / 'data'}", "data.max_len=20"]
    draws, values = {}, {}
    for track in ("causal", "none", "reference"):
        by_seed = []
        for seed in SEEDS:
            overrides = [f"seed={seed}", f"model.time_track={track}", *source, *SMALL, *SHORT]
            if track == "reference":  # every prefix a sample: as many targets in an epoch, and twenty times the work
                overrides += ["model.gaps=seconds", "data.windows=per-prefix", "train.batch_size=512", "train.epochs=4"]
            run = train("tim4rec/log", overrides, folder=tmp_path / f"{track}{seed}", quiet=True)
            rows = load_rows(run / "predictions.npz")
            assert len(rows["id"]) >= 2000
            names, sample = replicates("next_item", rows, resamples=1000, seed=0, topk=(10,))
            by_seed.append(sample[:, names.index("ndcg@10")])
            values.setdefault(track, []).append(rows["rank"])
        draws[track] = np.stack(by_seed)
    # the same draws of users for every run: differences are paired; seeds are drawn as well
    picked = np.random.default_rng(0).integers(len(SEEDS), size=(1000, len(SEEDS)))
    bounds = {}
    for track in ("reference", "causal"):
        difference = (draws[track] - draws["none"])[picked, np.arange(1000)[:, None]].mean(1)
        bounds[track] = np.quantile(difference, [0.025, 0.975])
        print(f"ndcg@10, {track} track minus none: {difference.mean():.4f} [%.4f, %.4f]" % tuple(bounds[track]))
    assert bounds["causal"][0] > 0  # the published track is reported, not asserted
