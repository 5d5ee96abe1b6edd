"""The contract suite: what every adapter and every model must keep, importable and run by name.

`tests/contract/` runs each check over every registry entry; `zoo data check FILE --contract` runs those of an adapter
over anybody's file. A check raises `Broken` with one line; `check_dataset` and `check_model` run all of their kind.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import metrics
from .backbones.base import Fitted, Model, outputs, parameter_count
from .data.base import Dataset, Part
from .data.spec import Inputs, Spec
from .errors import ZooError
from .files import hash_folder
from .mixers.base import Mixer
from .registry import entries, find
from .train import causality
from .train.optim import parameter_groups
from .train.task import Task


class Broken(ZooError):
    """A contract that does not hold."""


def require(holds: bool, what: str) -> None:
    """Raise `Broken` with `what` unless it holds."""
    if not holds:
        raise Broken(what)


# adapters -----------------------------------------------------------------------------------------------------------


def states_its_facts(cls: type[Dataset], config: dict) -> None:
    """Domain, tasks, group, licence and summary are stated; every download has a hash."""
    for name in ("domain", "group", "license"):
        require(bool(getattr(cls, name, "")), f"{cls.__name__} does not state `{name}`")
    require(bool(cls.tasks), f"{cls.__name__} states no task")
    for task in cls.tasks:
        find("task", task)
    # not `inspect.getdoc`, which would take the docstring of the base
    require(bool((cls.__doc__ or "").strip()), f"{cls.__name__} has no docstring, which lists show")
    for name in cls.urls:
        hashed = cls.files.get(name) or cls.archives.get(name) or (name not in cls.files and all(cls.files.values()))
        require(bool(hashed), f"{cls.__name__}: the download {name} has no SHA-256, nor have the files in it")


def sample_is_reproducible(cls: type[Dataset], config: dict) -> None:
    """The same seed writes the same bytes, another seed writes others."""
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            cls(**config).write_sample(Path(folder) / name, seed)
        one, same, other = (hash_folder(Path(folder) / name) for name in "abc")
    require(one == same, f"{cls.__name__}.write_sample: two calls with one seed wrote different files")
    require(one != other, f"{cls.__name__}.write_sample: seeds 0 and 1 wrote the same files")


def missing_files_are_named(cls: type[Dataset], config: dict) -> None:
    """Without files `manifest` fails with an error that names the folder and a remedy, and creates nothing."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        adapter = cls(**{**config, "root": empty})
        adapter.is_sample = True  # so that nothing is fetched or copied
        try:
            adapter.manifest()
        except ZooError as error:
            require(
                str(empty) in str(error) and ";" in str(error),
                f"{cls.__name__}: '{error}' names no folder or no remedy",
            )
        else:
            raise Broken(f"{cls.__name__}: an empty folder was accepted")
        require(not empty.exists(), f"{cls.__name__}: reading created {empty.name}")


def batches_match_the_spec(cls: type[Dataset], config: dict) -> None:
    """Every tensor of the Spec is in the batches of every part, with its shape and dtype."""
    adapter = cls.sample(**config)
    spec = adapter.prepare()
    told = f"{cls.__name__} states the kind {adapter.kind}, its Spec {spec.inputs.kind}"
    require(adapter.kind in ("", spec.inputs.kind), told)
    for name, part in adapter.parts.items():
        batch = part.batch(np.arange(min(3, len(part))), np.arange(min(3, len(part))) if name == "train" else None)
        for tensor, wanted in spec.inputs.tensors.items():
            require(tensor in batch, f"{adapter.key}: the {name} part has no '{tensor}', which the Spec lists")
            have = batch[tensor]
            fits = have.ndim == len(wanted.shape) + 1 and all(
                not isinstance(size, int) or size == real
                for size, real in zip(wanted.shape, have.shape[1:], strict=False)
            )
            require(
                fits and str(have.dtype) == wanted.dtype,
                f"{adapter.key}: {name} '{tensor}' is {have.dtype} {have.shape[1:]}, not {wanted.dtype} {wanted.shape}",
            )
        label = batch.get("label")
        if label is not None and spec.outputs.classes:
            require(label.max() < len(spec.outputs.classes), f"{adapter.key}: label {label.max()} has no class name")


def preparing_is_deterministic(cls: type[Dataset], config: dict) -> None:
    """Two preparations give the same ids, the same split hash and the same Spec, and the Spec survives saving."""
    one, other = cls.sample(**config), cls.sample(**config)
    require(one.prepare() == other.prepare(), f"{one.key}: two preparations gave different Specs")
    require(one.split_hash() == other.split_hash(), f"{one.key}: two preparations gave different splits")
    with tempfile.TemporaryDirectory() as folder:
        one.prepare().save(Path(folder))
        require(Spec.load(Path(folder)) == one.prepare(), f"{one.key}: the Spec is not the same after saving")


def ids_are_unique_and_parts_disjoint(cls: type[Dataset], config: dict) -> None:
    """Ids are unique within a part, there is one group per evaluated sample, and no group crosses the split."""
    adapter = cls.sample(**config)
    adapter.prepare()
    adapter.assert_no_leakage(adapter.parts)
    for name, part in adapter.parts.items():
        require(len(np.unique(part.ids)) == len(part), f"{adapter.key}: ids of the {name} part repeat")
        if name != "train":
            require(
                len(part.groups) == len(part),
                f"{adapter.key}: {len(part.groups)} groups for {len(part)} {name} samples",
            )


def batches_do_not_depend_on_neighbours(cls: type[Dataset], config: dict) -> None:
    """A sample is the same alone and in any batch (up to padding), and the same again under the same seed."""
    adapter = cls.sample(**config)
    for name, part in adapter.parts.items():
        index = np.arange(len(part))[:: max(1, len(part) // 5)][:5]
        seeds = np.arange(len(index)) + 7 if name == "train" else None
        whole, again = part.batch(index, seeds), part.batch(index, seeds)
        for key, array in whole.items():
            require(
                np.array_equal(array, again[key], equal_nan=array.dtype.kind == "f"),
                f"{adapter.key}: '{key}' changes when asked again",
            )
            for row, i in enumerate(index):
                alone = part.batch(np.array([i]), None if seeds is None else seeds[row : row + 1])[key][0]
                cut = tuple(slice(0, size) for size in alone.shape)
                require(
                    np.array_equal(alone, array[row][cut], equal_nan=array.dtype.kind == "f"),
                    f"{adapter.key}: '{key}' of a {name} sample depends on its batch",
                )


def loader_serves_every_sample_once(cls: type[Dataset], config: dict) -> None:
    """An epoch holds each sample once in a seeded order, and a loader that begins later delivers the same tail."""
    adapter = cls.sample(**config)
    data = adapter.datamodule(batch_size=16, seed=3)
    whole = [batch["index"].tolist() for batch in data.train_steps(0, 2 * len(data.train_steps()))]
    first = [i for batch in whole[: len(whole) // 2] for i in batch]
    second = [i for batch in whole[len(whole) // 2 :] for i in batch]
    n = len(adapter.part("train"))
    require(
        sorted(first) == list(range(n)) == sorted(second), f"{adapter.key}: an epoch does not hold each sample once"
    )
    require(n < 8 or first != second, f"{adapter.key}: two epochs come in one order")
    late = [batch["index"].tolist() for batch in data.train_steps(len(whole) - 3, len(whole))]
    require(late == whole[-3:], f"{adapter.key}: a loader that begins at a later step delivers other batches")


def nothing_is_written_beside_the_data(cls: type[Dataset], config: dict) -> None:
    """Checking and preparing leave the source's folder as it was; facts are JSON."""
    with tempfile.TemporaryDirectory() as folder:  # a fresh one: other checks have prepared the cached sample already
        adapter = cls.sample(folder=Path(folder) / "data", **config)
        before = hash_folder(adapter.folder)
        facts = adapter.check()
        require(hash_folder(adapter.folder) == before, f"{adapter.key}: preparing wrote into the data folder")
    json.dumps([facts, adapter.describe()])
    require(facts["sample"] is True, f"{adapter.key}: a sample does not say that it is one")


def tasks_have_a_floor(cls: type[Dataset], config: dict) -> None:
    """For every task the trivial model's rows are valid and its primary metric is a number."""
    for name in [config["task"]] if "task" in config else cls.tasks:
        adapter = cls.sample(**(config | ({"task": name} if cls.by_task else {})))
        if not adapter.evaluates:
            return
        spec = adapter.prepare()
        task: Task = find("task", name).load()(torch.nn.Identity(), spec)
        rows = task.trivial(adapter.part("train"), adapter.part("test"))
        require(
            rows["id"].tolist() == adapter.part("test").ids.astype(str).tolist(),
            f"{adapter.key}: ids of the floor's rows are not the part's",
        )
        value = metrics.compute(task.rows, rows, **task.metric_options())[task.primary]
        require(value is not None, f"{adapter.key}: the floor of {name} has no {task.primary}")


def predicting_reads_as_evaluation_did(cls: type[Dataset], config: dict) -> None:
    """What evaluation read of the test part, given to `inference`, yields the evaluation's inputs bit for bit."""
    if cls.inference is Dataset.inference:
        return
    for name in [config["task"]] if "task" in config else cls.tasks:
        given = config | ({"task": name} if cls.by_task else {})
        adapter, reader = cls.sample(**given), cls.sample(**given)
        if not adapter.evaluates:
            return
        spec, test = adapter.prepare(), adapter.part("test")
        with tempfile.TemporaryDirectory() as folder:
            prep = Path(folder) / "prep"
            spec.save(prep)
            adapter.save_prep(prep)
            source = adapter.write_evaluated(Path(folder) / "evaluated")
            if source is None:
                continue
            part = reader.inference(source, prep)
            require(len(part) == len(test), f"{adapter.key}: {len(part)} samples to predict for, {len(test)} evaluated")
            seen, evaluated = (_samples(one, spec.inputs.tensors) for one in (part, test))
        differ = sum(one != other for one, other in zip(seen, evaluated, strict=True))
        remedy = "; draws of evaluation must be a function of what inference knows too" if differ else ""
        told = f"{adapter.key}: {differ} of {len(test)} samples are read otherwise to predict ({name}){remedy}"
        require(not differ, told)


def _samples(part: Part, names: Iterable[str]) -> list[bytes]:
    """Each sample's named tensors as bytes, sorted: parts that name their samples differently can be compared."""
    batch = part.batch(np.arange(len(part)))
    return sorted(b"".join(np.ascontiguousarray(batch[name][i]).tobytes() for name in names) for i in range(len(part)))


DATASET_CHECKS = (
    states_its_facts,
    sample_is_reproducible,
    missing_files_are_named,
    batches_match_the_spec,
    preparing_is_deterministic,
    ids_are_unique_and_parts_disjoint,
    batches_do_not_depend_on_neighbours,
    loader_serves_every_sample_once,
    nothing_is_written_beside_the_data,
    tasks_have_a_floor,
    predicting_reads_as_evaluation_did,
)


def variants(cls: type[Dataset], config: dict) -> list[dict]:
    """`config` once, or for each task where batches depend on it."""
    if not cls.by_task or "task" in config:
        return [config]
    return [config | {"task": task} for task in cls.tasks]


def check_dataset(cls: type[Dataset], **config) -> list[str]:
    """Run every adapter check; returns their names, raises `Broken` at the first that fails."""
    if cls.subsets:
        config.setdefault("subset", cls.subsets[0])
    for given in variants(cls, config):
        for check in DATASET_CHECKS:
            try:
                check(cls, given)
            except Broken as error:
                raise Broken(f"{check.__name__.replace('_', ' ')}: {error}") from error
    return [check.__name__.replace("_", " ") for check in DATASET_CHECKS]


# models -------------------------------------------------------------------------------------------------------------


def sample_for(cls: type) -> Dataset:
    """A small data set of a kind that the model accepts: the first adapter whose sample gives it."""
    for entry in entries("dataset").values():
        if ":" in entry.key:
            continue
        source = entry.load()
        served = [task for task in source.tasks if not cls.serves or task in cls.serves]
        if not served:
            continue
        config = source.tiny | ({"subset": source.subsets[0]} if source.subsets else {})
        adapter = source.sample(**config, **({"task": served[0]} if source.by_task else {}))
        if adapter.prepare().inputs.kind in cls.accepts:
            return adapter
    raise Broken(f"{cls.__name__}: no data set of the registry gives {' or '.join(cls.accepts)}")


def distinct_models() -> list[str]:
    """Registered names without those whose tiny preset is another name's: sizes of a family differ in nothing else."""
    found: dict[str, str] = {}
    for key, entry in entries("model").items():
        cls = entry.load()
        found.setdefault(repr((cls, sorted({**entry.config, **cls.tiny}.items(), key=str))), key)
    return sorted(found.values())


def _tiny(key: str) -> tuple[type, Dataset, Model | Fitted]:
    entry = find("model", key)
    cls = entry.load()
    adapter = sample_for(cls)
    torch.manual_seed(0)
    return cls, adapter, cls.from_spec(adapter.prepare(), **{**entry.config, **cls.tiny})


def _inputs(model, adapter: Dataset, count: int = 4) -> list[torch.Tensor]:
    batch = adapter.part("test").batch(np.arange(count))
    return [torch.from_numpy(np.ascontiguousarray(batch[name])) for name in model.inputs]


def config_rebuilds_the_model(key: str) -> None:
    """`config` is JSON, names every constructor argument, and builds a model of the same size."""
    cls, _, model = _tiny(key)
    config = json.loads(json.dumps(model.config))
    require(
        set(config) == set(inspect.signature(cls.__init__).parameters) - {"self"}, f"{key}: config misses arguments"
    )
    require(parameter_count(cls(**config)) == parameter_count(model), f"{key}: config builds a model of another size")


def wrong_kind_is_refused(key: str) -> None:
    """A data set of another kind fails in one line before anything is built."""
    cls, _, _ = _tiny(key)
    other = next(kind for kind in ("points", "patches", "tokens", "log", "image") if kind not in cls.accepts)
    try:
        cls.from_spec(Spec(Inputs(other, {})))
    except ZooError as error:
        require(other in str(error), f"{key}: '{error}' does not name the kind {other}")
    else:
        raise Broken(f"{key}: {other} data were accepted")


def saving_keeps_the_outputs(key: str) -> None:
    """Saved weights give the same outputs in a fresh model, and the two files are all it needs."""
    from .api import load

    _, adapter, model = _tiny(key)
    _fit_if_fitted(model, adapter)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder), key)
        require(
            {p.name for p in Path(folder).iterdir()} == {"config.json", "model.safetensors"},
            f"{key}: save wrote other files",
        )
        again = load(folder)
    require(
        np.array_equal(_outputs(model, adapter), _outputs(again, adapter)),
        f"{key}: outputs changed by saving and loading",
    )


def every_parameter_learns(key: str) -> None:
    """Backward gives every parameter a finite gradient, and the optimiser's groups hold each once."""
    _, adapter, model = _tiny(key)
    if isinstance(model, Fitted):
        return
    model.train()
    model(*_inputs(model, adapter)).float().square().sum().backward()
    for name, parameter in model.named_parameters():
        require(
            name in model.idle() or parameter.grad is not None and bool(parameter.grad.isfinite().all()),
            f"{key}: {name} has no finite gradient",
        )
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    require(
        sorted(grouped) == sorted({id(p) for p in model.parameters()}),
        f"{key}: parameter groups do not hold each parameter once",
    )


def pooled_features_are_what_the_head_sees(key: str) -> None:
    """Each sample has one vector; where the output is one for each sample as well, it is the head of that vector."""
    _, adapter, model = _tiny(key)
    if isinstance(model, Fitted):
        return
    inputs = _inputs(model, adapter)
    with torch.inference_mode():
        pooled, outputs = model.eval().pooled_features(*inputs), model(*inputs)
        require(pooled.ndim == 2 and len(pooled) == len(inputs[0]), f"{key}: pooled features {tuple(pooled.shape)}")
        require(
            outputs.ndim != 2 or torch.allclose(model.forward_head(pooled), outputs, atol=1e-5),
            f"{key}: the head of its pooled features is not its output",
        )


def causal_means_causal(key: str) -> None:
    """A model that states `causal` does not look at later steps, by the check that tasks make before training."""
    _, adapter, model = _tiny(key)
    if isinstance(model, Fitted) or not model.causal:
        return
    moved = causality.assert_causal(
        model, adapter.part("train"), causality.features, "mend the model, or state causal = False"
    )
    require(moved, f"{key}: features do not change with the inputs, so that there was nothing to see")


class _Other(nn.Module):
    """Stands in another layer's place and gives something else; has none of its attributes."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        y = out[0] if isinstance(out, tuple) else out
        pattern = torch.arange(y.numel(), dtype=y.dtype, device=y.device).sin().view_as(y)
        return (y + pattern, *out[1:]) if isinstance(out, tuple) else y + pattern


def layers_can_be_replaced(key: str) -> None:
    """Whatever stands in a layer's place (LoRA, int8) takes effect: no weight is read past its module.

    The embedding that a tied head multiplies by is the exception. Layers within mixers are under the law of mixers.
    """
    _, adapter, model = _tiny(key)
    if isinstance(model, Fitted):
        return
    inputs, seen = _inputs(model, adapter, 2), set()
    model.eval()
    with torch.inference_mode():
        before = model(*inputs)
        for name, layer in list(model.named_modules()):
            place, _, last = name.rpartition(".")
            parent = model.get_submodule(place)
            kind = type(parent), place if isinstance(parent, (nn.Sequential, nn.ModuleList)) else "", last
            a_layer = type(layer).__module__.startswith(("torch.nn.", f"{__package__}.nn."))
            if kind in seen or not a_layer or not layer._parameters:
                continue
            above = [model.get_submodule(name[:end]) for end, mark in enumerate(name) if mark == "."]
            idle = {f"{name}.{parameter}" for parameter in layer._parameters} <= model.idle()
            if idle or any(isinstance(module, Mixer) for module in above):
                continue
            seen.add(kind)
            setattr(parent, last, _Other(layer))
            try:
                after = model(*inputs)
            except AttributeError as error:
                require(model.tied() == name, f"{key}: something in the place of {name} breaks it: {error}")
                continue
            finally:
                setattr(parent, last, layer)
            require(not torch.equal(before, after), f"{key}: something in the place of {name} takes no effect")


def evaluation_is_deterministic(key: str) -> None:
    """Two evaluations give the same outputs; dropout is off."""
    _, adapter, model = _tiny(key)
    _fit_if_fitted(model, adapter)
    require(np.array_equal(_outputs(model, adapter), _outputs(model, adapter)), f"{key}: two evaluations differ")


MODEL_CHECKS = (
    config_rebuilds_the_model,
    wrong_kind_is_refused,
    saving_keeps_the_outputs,
    every_parameter_learns,
    pooled_features_are_what_the_head_sees,
    causal_means_causal,
    layers_can_be_replaced,
    evaluation_is_deterministic,
)


def check_model(key: str) -> list[str]:
    """Run every model check on a registered name or a path; returns their names."""
    for check in MODEL_CHECKS:
        check(key)
    return [check.__name__.replace("_", " ") for check in MODEL_CHECKS]


def _fit_if_fitted(model, adapter: Dataset) -> None:
    if isinstance(model, Fitted):
        model.fit(adapter.part("train"), adapter.prepare())


def _outputs(model, adapter: Dataset) -> np.ndarray:
    if isinstance(model, Model):
        model.eval()
    with torch.inference_mode():
        return outputs(model, _inputs(model, adapter)).numpy()
