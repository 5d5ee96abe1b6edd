"""Ten million interactions are prepared and start training within 4 GB of anonymous memory over the imports."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

EVENTS, USERS, ITEMS = 10_000_000, 200_000, 50_000

WORKER = """
import json, sys, threading, time
from pathlib import Path

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

import lightning, torch, pandas, scipy.sparse
from statezoo.zoo.train.run import train
import statezoo.zoo.train.finish, statezoo.tasks.next_item, statezoo.zoo.backbones.gru4rec, statezoo.datasets.recsys.log

base, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], anonymous())

threading.Thread(target=watch, daemon=True).start()
began = time.time()
from statezoo.zoo.api import create_dataset
adapter = create_dataset("log", root=sys.argv[1], file="log.csv", windows=sys.argv[2])
spec = adapter.prepare()
prepared = time.time() - began
from statezoo.zoo.backbones.gru4rec import GRU4Rec
from statezoo.tasks.next_item import NextItem
task = NextItem(GRU4Rec.from_spec(spec), spec)
optimizer = torch.optim.Adam(task.parameters())
for step, batch in zip(range(3), adapter.datamodule(batch_size=16).train_steps(0, 3)):
    optimizer.zero_grad(); task.loss(batch).backward(); optimizer.step()
done.set()
windows = len(adapter.part("train"))
print(json.dumps({"growth": peak[0] - base, "prepare_s": prepared, "windows": windows, **adapter.counts}))
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of ten million events, items by a power law, as CSV."""
    import pyarrow as pa
    import pyarrow.csv as csv

    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    user = rng.integers(0, USERS, EVENTS)
    item = (ITEMS * rng.random(EVENTS) ** 2).astype(np.int64)
    time = 1_500_000_000 + np.sort(rng.integers(0, 50_000_000, EVENTS))
    csv.write_csv(pa.table({"user": user, "item": item, "time": time}), folder / "log.csv")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="RssAnon is read from Linux's /proc")
@pytest.mark.parametrize("windows", ["all-positions", "per-prefix"])
def test_ten_million_events_stay_under_4_gb(log, windows, record_property):
    command = [sys.executable, "-c", WORKER, str(log), windows]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    print(facts)
    record_property("facts", facts)
    assert facts["events_in_file"] == EVENTS
    assert facts["growth"] < 4e9
    # windows are found by arithmetic: per prefix there are 40 times as many, and they cost next to nothing
    assert facts["windows"] > (9_000_000 if windows == "per-prefix" else 190_000)
