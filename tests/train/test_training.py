"""What the `train` section promises: each setting has its effect, and failures end in one line with a remedy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from statezoo.zoo.api import load
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import read_json
from statezoo.zoo.recipe import load as load_recipe
from statezoo.zoo.train.config import TrainConfig
from statezoo.zoo.train.csvlog import read_log
from statezoo.zoo.train.engine import Engine
from statezoo.zoo.train.evaluate import collect
from statezoo.zoo.train.optim import make_optimizer, parameter_groups
from statezoo.zoo.train.run import session, train
from statezoo.zoo.train.state import load as load_state

SHORT = ["train.epochs=2", "train.logger=null"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A short finished run."""
    return train("mlp/digits", SHORT, sample=True, folder=tmp_path_factory.mktemp("plain") / "run", quiet=True)


def digits(folder, *overrides):
    return train("mlp/digits", [*SHORT, *overrides], sample=True, folder=folder, quiet=True)


def test_run_folder_is_complete(plain):
    names = {path.relative_to(plain).as_posix() for path in plain.rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "prep/spec.json", "metrics.csv", "model.safetensors", "config.json", "predictions.npz",
                "record.json", "plots/loss.png", "checkpoints/last.ckpt", "checkpoints/best.safetensors"}  # fmt: skip
    assert expected <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]


def test_pictures_show_the_curves(plain):
    from matplotlib.image import imread

    for name in ("loss", "accuracy", "balanced_accuracy"):
        image = imread(plain / "plots" / f"{name}.png")
        assert image.shape[0] > 300 and image.shape[1] > 500
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20, "an empty picture"


@pytest.mark.parametrize("log_every", [1, 4, 20])
def test_the_loss_of_an_epoch_is_the_mean_over_its_batches(log_every, tmp_path, capsys):
    words = ["train.epochs=2", "train.max_steps=8", "train.logger=null"]  # an epoch has 5 batches
    every = train("mlp/digits", [*words, "train.log_every=1"], sample=True, folder=tmp_path / "every", quiet=True)
    steps, losses = read_log(every / "metrics.csv")["train", "loss"]
    assert steps == list(range(1, 9)), "a row for each batch"
    capsys.readouterr()
    run = train("mlp/digits", [*words, f"train.log_every={log_every}"], sample=True, folder=tmp_path / "run")
    log, epochs = read_log(run / "metrics.csv"), [np.mean(losses[:5]), np.mean(losses[5:])]
    assert log["train", "epoch_loss"] == ([5, 8], pytest.approx(epochs, rel=1e-14))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [f"loss {mean:.4f}" in line for line, mean in zip(told, epochs, strict=True)] == [True, True]
    rows = {1: steps, 4: [4, 5, 8], 20: [5, 8]}[log_every]
    between = [np.mean(losses[first:last]) for first, last in zip([0, *rows], rows, strict=False)]
    assert log["train", "loss"] == (rows, pytest.approx(between, rel=1e-14)), "the mean since the row before"


def test_accumulated_batches_tell_their_own_loss(tmp_path):
    """Lightning divides the loss of a batch by `accumulate`; nothing is trained here, so that nothing may differ."""
    words = ["train.lr=0", "train.log_every=1"]
    one, three = digits(tmp_path / "one", *words), digits(tmp_path / "three", *words, "train.accumulate=3")
    for name in ("loss", "epoch_loss"):
        assert read_log(one / "metrics.csv")["train", name] == read_log(three / "metrics.csv")["train", name]


@pytest.mark.parametrize(("log_every", "lines"), [(4, ["train loss", "train loss, mean of the epoch"]),
                                                 (20, ["train loss, mean of the epoch"])])  # fmt: skip
def test_the_picture_of_the_loss_shows_the_epochs(log_every, lines, tmp_path, monkeypatch):
    from statezoo.zoo import plots

    run, figures = digits(tmp_path / "run", f"train.log_every={log_every}"), {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.update({path.stem: figure}))
    plots.curves(run)
    (axes,) = figures["loss"].axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn) == lines and "epoch_loss" not in figures
    steps, values = read_log(run / "metrics.csv")["train", "epoch_loss"]
    assert drawn[plots.EPOCH_LOSS].get_xdata().tolist() == steps == [5, 10]
    assert drawn[plots.EPOCH_LOSS].get_ydata().tolist() == values
    assert log_every == 20 or drawn["train loss"].get_linewidth() < drawn[plots.EPOCH_LOSS].get_linewidth()


def test_seed_decides_the_weights(plain, tmp_path):
    same, other = digits(tmp_path / "same"), digits(tmp_path / "other", "seed=1")
    assert (same / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()


def test_workers_do_not_change_the_result(plain, tmp_path):
    with_workers = digits(tmp_path / "run", "train.workers=2")
    assert (with_workers / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_init_from_takes_what_fits_and_reports_the_rest(plain, tmp_path, capsys):
    run = train("mlp/digits", [*SHORT, f"train.init_from={plain}", "model.hidden=32", "train.lr=0"], sample=True,
                folder=tmp_path / "run")  # fmt: skip
    said = capsys.readouterr().out
    assert "mix.0.weight" in said.split("new here:")[1].split(";")[0]
    before, after = load_file(plain / "model.safetensors"), load_file(run / "model.safetensors")
    assert torch.equal(before["embed.weight"], after["embed.weight"])
    assert read_json(run / "record.json")["model"]["pretrained"] is not None
    with pytest.raises(ZooError, match="no weights there"):
        digits(tmp_path / "bad", "train.init_from=nowhere")


def test_ema_evaluates_the_average(tmp_path):
    # a decay of 1 never moves: the averaged weights stay what they were at the start
    run = digits(tmp_path / "run", "train.ema=1.0")
    start = digits(tmp_path / "start", "train.lr=0")
    assert torch.equal(
        load_file(run / "model.safetensors")["embed.weight"], load_file(start / "model.safetensors")["embed.weight"]
    )


def test_the_average_moves_once_an_optimiser_step(tmp_path):
    words = ("train.ema=0.75", "train.accumulate=5")
    start = load_file(digits(tmp_path / "start", "train.lr=0") / "model.safetensors")["embed.weight"]
    states = [load_state(digits(tmp_path / str(n), *words, f"train.max_steps={n}")) for n in (5, 10)]
    (first, second), (one, two) = ([s[kind]["embed.weight"] for s in states] for kind in ("model", "ema"))
    assert torch.allclose(one, start.lerp(first, 0.25), atol=1e-7)
    assert torch.allclose(two, one.lerp(second, 0.25), atol=1e-7) and not torch.equal(one, two)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_out_and_leaves_the_mode_as_it_was(training):
    s = session(load_recipe("mlp/digits", ["model.dropout=0.5"], sample=True), sample=True)
    part = s.dataset.part("valid")
    s.task.train(training)
    rows = collect(s.task, s.datamodule(), part)
    assert s.task.training is training
    s.task.eval()
    batch = {name: torch.from_numpy(array) for name, array in part.batch(np.arange(len(part))).items()}
    with torch.inference_mode():
        wanted = s.task.outputs_to_rows(s.task.outputs(batch), batch)
    assert np.allclose(rows["prob"], wanted["prob"], atol=1e-6) and rows["id"].tolist() == list(part.ids)


def test_whole_numbers_of_a_model_are_copied_into_the_average():
    model = torch.nn.BatchNorm1d(2)
    own = SimpleNamespace(config=SimpleNamespace(ema=0.5), ema={k: v.clone() for k, v in model.state_dict().items()})
    model.num_batches_tracked += 3
    model.weight.data += 1
    Engine._update_ema(own, SimpleNamespace(model=model))
    assert own.ema["num_batches_tracked"] == 3 and own.ema["weight"].tolist() == [1.5, 1.5]


def test_patience_stops_early(tmp_path):
    run = digits(tmp_path / "run", "train.lr=0", "train.patience=2", "train.epochs=9")
    steps, _ = read_log(run / "metrics.csv")[("valid", "balanced_accuracy")]
    assert len(steps) == 3  # the first is the best, then two that are no better


def test_max_steps_and_eval_every(tmp_path):
    run = digits(tmp_path / "run", "train.max_steps=7", "train.epochs=9", "train.eval_every=2")
    curves = read_log(run / "metrics.csv")
    assert curves[("train", "loss")][0][-1] == 7
    assert curves[("valid", "accuracy")][0] == [7], "the first epoch is passed over, the last step is not"
    assert read_json(run / "record.json")["cost"]["train_steps"] == 7


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_precision_trains(tmp_path, precision):
    run = digits(tmp_path / "run", f"train.precision={precision}")
    record = read_json(run / "record.json")
    assert record["environment"]["precision"] == precision
    assert record["metrics"]["accuracy"]["value"] > record["floor"]["accuracy"]
    assert all(tensor.dtype == torch.float32 for tensor in load_file(run / "model.safetensors").values())


@pytest.mark.slow
def test_a_compiled_loss_trains_the_same(tmp_path):
    short = ["train.max_steps=4", "train.log_every=1", "train.logger=null", "model.dropout=0", "model.time_dropout=0"]
    losses = {}
    for compiled in ("false", "true"):
        run = train("tim4rec/log", [*short, f"train.compile={compiled}"], sample=True, folder=tmp_path / compiled)
        losses[compiled] = read_log(run / "metrics.csv")["train", "loss"][1]
    assert len(losses["true"]) == 4 and np.allclose(losses["true"], losses["false"], rtol=1e-4)


def test_clipping_and_accumulation_change_the_path(plain, tmp_path):
    weights = {name: load_file(digits(tmp_path / name, f"train.{name}={value}") / "model.safetensors")["embed.weight"]
               for name, value in (("clip", 1e-4), ("accumulate", 2))}  # fmt: skip
    reference = load_file(plain / "model.safetensors")["embed.weight"]
    assert all(not torch.equal(reference, changed) for changed in weights.values())


def test_class_weights_and_balanced_sampler(tmp_path):
    from statezoo.zoo.data.base import Part
    from statezoo.zoo.data.datamodule import TrainSteps

    label = np.array([0] * 90 + [1] * 10)
    part = Part({"label": label, "image": np.zeros((100, 1))}, [str(i) for i in range(100)])
    steps = TrainSteps(part, 10, seed=0, sampler="balanced")
    drawn = np.concatenate([label[steps.order(epoch)] for epoch in range(50)])
    assert abs(drawn.mean() - 0.5) < 0.03
    assert np.array_equal(steps.order(3), steps.order(3)) and not np.array_equal(steps.order(3), steps.order(4))
    run = digits(tmp_path / "run", "task.class_weights=balanced", "train.sampler=balanced")
    assert read_json(run / "record.json")["metrics"]["accuracy"]["value"] > 0.15


def test_class_weights_weigh_the_loss():
    from statezoo.tasks.classification import Classification
    from statezoo.zoo.api import create_dataset, create_model

    spec = create_dataset("digits").sample().prepare()
    model = create_model("mlp", in_channels=1, height=8, width=8, num_outputs=10, dim=8, hidden=8)
    task = Classification(model, spec, class_weights="balanced")
    task.class_weight.copy_(torch.arange(1.0, 11.0))
    batch = {"image": torch.randn(6, 1, 8, 8), "label": torch.tensor([0, 1, 2, 3, 4, 9])}
    task.eval()
    each = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")
    weight = batch["label"] + 1.0
    assert torch.allclose(task.loss(batch), (each * weight).sum() / weight.sum())


def test_nan_ends_in_one_line(tmp_path, capsys):
    bad = ["train.optimizer=sgd", "train.lr=1e30", "train.logger=null"]
    code = main(["train", "mlp/digits", "--sample", *bad, "--folder", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(error) == 1 and "train.lr" in error[0]


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("batch_size=0", "give at least 1"),
        ("workers=-1", "give 0 or more"),
        ("workers=5000", "give at most 1024"),
        ("threads=1000000", "give at most 1024"),
        ("lr=-1.0", "give 0 or more"),
        ("clip=0.0", "give more than 0"),
        ("ema=1.5", "give a decay from 0 to 1, such as 0.999"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, setting, remedy):
    with pytest.raises(ZooError) as caught:
        train("sasrec/ml-100k", [f"train.{setting}"], sample=True, folder=tmp_path / "run", quiet=True)
    assert str(caught.value) == f"train.{setting}: {remedy}"
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_batch_of_one_for_batch_norm_ends_in_one_line(tmp_path):
    words = ["train.batch_size=179", "train.epochs=1"]
    with pytest.raises(ZooError, match="leave a batch of one, which has no variance .* set train.batch_size=180"):
        train("pointnet/anatomy-bones", words, sample=True, folder=tmp_path / "run", quiet=True)


def raised(error):
    def fail(*given):
        raise error

    return fail


#: allocations that fail in their own way, and errors as a GPU raises them, where a step would raise them
FULL = {
    "torch": lambda *given, **how: torch.empty(1 << 55),
    "numpy": lambda *given: np.empty(1 << 55),
    "python": lambda *given: bytearray(1 << 60),
    "cuda": raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "cuda below torch": raised(RuntimeError("CUDA error: out of memory")),
    "cublas": raised(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
}


@pytest.mark.parametrize("kind", FULL)
def test_out_of_memory_ends_in_one_line(kind, tmp_path, monkeypatch):
    from statezoo.tasks.classification import Classification

    monkeypatch.setattr(Classification, "loss", FULL[kind])
    with pytest.raises(ZooError) as caught:
        digits(tmp_path / "run", "train.accumulate=2")
    assert str(caught.value) == (
        "out of memory at batch size 64; set train.batch_size=32 and train.accumulate=4 or set "
        "train.precision=bf16-mixed"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("chunk", "remedy"), [("null", "set task.loss_chunk=24, "), ("64", "set task.loss_chunk=32, "), ("1", "")]
)
def test_out_of_memory_names_what_the_task_can_make_smaller(chunk, remedy, tmp_path, monkeypatch):
    from statezoo.tasks import next_item

    monkeypatch.setattr(next_item.F, "cross_entropy", FULL["torch"])  # of 96 items
    monkeypatch.setattr(next_item, "chunked_cross_entropy", FULL["torch"])
    with pytest.raises(ZooError, match=rf"^out of memory at batch size 64; {remedy}set train\.batch_size=32 and "):
        train("sasrec/ml-100k", [*SHORT, f"task.loss_chunk={chunk}"], sample=True, folder=tmp_path / "run", quiet=True)


def test_out_of_memory_in_evaluation_names_its_batch_size(tmp_path, monkeypatch):
    from statezoo.zoo.backbones.baselines.mlp import MLP

    plain = MLP.forward_head
    monkeypatch.setattr(MLP, "forward_head", lambda self, x: plain(self, x) if self.training else torch.empty(1 << 55))
    with pytest.raises(ZooError) as caught:
        digits(tmp_path / "run")
    assert str(caught.value) == "out of memory in evaluation at batch size 128; set train.eval_batch_size=64"


def test_out_of_memory_in_fitting_is_one_line(tmp_path, monkeypatch):
    from statezoo.zoo.backbones.baselines.popularity import Popularity

    monkeypatch.setattr(Popularity, "fit", FULL["numpy"])
    with pytest.raises(ZooError, match=r"^out of memory in fitting popularity on \d+ samples; give fewer or use a"):
        train("popularity/ml-100k", sample=True, folder=tmp_path / "run", quiet=True)


def test_schedules():
    model = torch.nn.Linear(2, 2)
    for schedule, end, expected in (
        ("constant", None, [0.5, 1.0, 1.0, 1.0]),
        ("linear", None, [0.5, 1.0, 1.0, 0.5]),
        ("linear", 0.2, [0.5, 1.0, 1.0, 0.6]),
        ("cosine", None, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0.2, [0.5, 1.0, 1.0, 0.6]),
    ):
        made = make_optimizer(model, TrainConfig(lr=1.0, schedule=schedule, lr_end=end, warmup_steps=2), 4)
        rates = []
        for _ in range(4):
            rates.append(made["optimizer"].param_groups[0]["lr"])
            made["optimizer"].step()
            made["lr_scheduler"]["scheduler"].step()
        assert rates == pytest.approx(expected)


def test_optimizers_by_name():
    model = torch.nn.Linear(2, 2)
    sgd = make_optimizer(model, TrainConfig(optimizer="sgd"), 1)["optimizer"]
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.9
    assert type(make_optimizer(model, TrainConfig(optimizer="lamb"), 1)["optimizer"]).__name__ == "Lamb"
    with pytest.raises(ZooError, match="unknown optimizer 'adamm'"):
        make_optimizer(model, TrainConfig(optimizer="adamm"), 1)


def test_weight_decay_spares_vectors_and_what_modules_exempt():
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.A_log = (
                torch.nn.Linear(3, 3),
                torch.nn.LayerNorm(3),
                torch.nn.Parameter(torch.ones(3, 3)),
            )

        def no_weight_decay(self):
            return {"A_log"}

    model = torch.nn.Sequential(Owner())
    decayed, free = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [model[0].linear.weight.shape] and decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0 and any(p is model[0].A_log for p in free["params"]) and len(free["params"]) == 4
    alone = parameter_groups(model[0], 0.1)  # the module that exempts is the model itself
    assert [len(group["params"]) for group in alone] == [1, 4]
    model[0].linear.weight.requires_grad_(False)
    (free,) = parameter_groups(model, 0.1)
    assert len(free["params"]) == 4 and free["weight_decay"] == 0


def test_loggers_by_recipe(tmp_path):
    run = digits(tmp_path / "run", "train.logger=CSVLogger")
    assert list(run.glob("lightning_logs/version_0/metrics.csv"))
    with pytest.raises(ZooError, match="did you mean 'CSVLogger'"):
        digits(tmp_path / "bad", "train.logger=CSVLoger")


def test_tensorboard_by_default(tmp_path):
    pytest.importorskip("tensorboard")
    run = train("mlp/digits", ["train.epochs=1"], sample=True, folder=tmp_path / "run", quiet=True)
    assert list(run.glob("tensorboard/events*"))


def test_load_needs_the_run_alone(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("STATEZOO_DATA", str(tmp_path))  # no data anywhere
    model = load(plain)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10) and not model.training


def test_anyones_trainer(plain):
    """Our data module and task under a plain Lightning Trainer."""
    import lightning as L
    from statezoo.tasks.classification import Classification
    from statezoo.zoo.api import create_dataset, create_model

    adapter = create_dataset("digits").sample()
    spec = adapter.prepare()
    task = Classification(
        create_model("mlp", in_channels=1, height=8, width=8, num_outputs=10, dim=16, hidden=16), spec
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, **quiet)
    trainer.fit(task, datamodule=adapter.datamodule(batch_size=32))
    assert trainer.current_epoch == 2 and trainer.global_step == 2 * 9
    assert 0 < float(trainer.callback_metrics["valid/accuracy"]) <= 1


@pytest.mark.parametrize("model", ["sasrec", "bert4rec", "tim4rec"])
def test_chunked_loss_is_the_loss(model):
    losses = []
    for overrides in ([], ["task.loss_chunk=7"]):
        s = session(load_recipe(f"{model}/ml-100k", overrides, sample=True), sample=True)
        batch = next(iter(s.dataset.datamodule(batch_size=8).train_steps(0, 1)))
        torch.manual_seed(0)
        for parameter in s.task.model.parameters():  # a bias begins as 0, which hides that it is left out
            parameter.data += 0.05 * torch.randn_like(parameter)
        s.task.eval()
        losses.append(s.task.loss(batch))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    hashes = {load_recipe(f"{model}/ml-100k", o).hash() for o in ([], ["task.loss_chunk=7"])}
    assert len(hashes) == 1, "how the loss is summed does not change what the recipe is"
