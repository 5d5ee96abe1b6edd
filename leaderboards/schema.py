"""The record: an immutable JSON that states what one run was and what it scored. Unknown is null, never invented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from ..zoo.errors import ZooError, unknown
from ..zoo.files import hash_json, read_json
from ..zoo.foreign import is_name, reading

SCHEMA_VERSION = "1"
LARGEST_PREDICTIONS = 256 * 1024  #: bytes of predictions that may be committed beside a record
LARGEST_RECORD = 4 << 20  #: bytes of a record
#: settings that came after the first results (`added_later` of their classes), at what was done until then, besides off
AS_BEFORE = {"data.timestamps": "exact", "train.devices": 1, "train.num_nodes": 1}


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text[:80]!r} is no name; use letters, digits and . _ @ + : - alone")
    return text


def _id(text: str) -> str:
    for part in text.split("/"):
        _named(part)
    return text


Name = Annotated[str, AfterValidator(_named)]  # a part of a path below the records
Id = Annotated[str, AfterValidator(_id)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    """A field that later versions of the schema added has the default None and is written only where it is set.

    So records from before it keep their text, and with it their id.
    """

    # strict: true is no number, "3" is none either
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_unset(self, write):
        fields = type(self).model_fields
        return {name: value for name, value in write(self).items() if value is not None or fields[name].is_required()}


class TrainedOn(_Strict):
    """Data set, task and split by name."""

    dataset: Name
    version: Name
    task: Name
    split: Name | None
    split_version: Name | None = Field(None, description="raised where the split is made in another way than before")
    sample: bool = Field(description="True: the embedded synthetic sample, never shown beside real data")


class Benchmark(TrainedOn):
    """What makes scores comparable: the same test, measured in the same way."""

    protocol: dict[str, Any] = Field(description="task options that decide the metrics")
    metric_version: Name

    @property
    def name(self) -> str:
        """Folder name: `<dataset>-<task>[@<split>]`."""
        return f"{self.dataset.replace(':', '-')}-{self.task}" + (f"@{self.split}" if self.split else "")


class Data(_Strict):
    """The exact data: hash of the source files, of the split, and sizes."""

    manifest_sha256: Hash
    split_sha256: list[Hash] = Field(min_length=1)
    group: str
    n: dict[Name, Count]
    facts: dict[str, Any] | None = Field(None, description="what reading and splitting counted or dropped")


class ModelFacts(_Strict):
    """The model as it was."""

    name: Name
    parameters: Count
    macs: Count | None = Field(description="multiply-accumulates of one sample's forward pass")
    weights_sha256: Hash
    prep_sha256: Hash
    pretrained: str | None = Field(description="what the weights started from, null for none")


class RecipeFacts(_Strict):
    """The scientific part of the resolved recipe: no paths, no machine settings."""

    id: Id
    scientific: dict[Name, dict[str, Any]]
    sha256: Hash
    code: dict[Name, Hash] | None = Field(None, description="SHA-256 of each file from outside the zoo that it names")


class Code(_Strict):
    """The code that ran."""

    version: str
    commit: str | None
    dirty: bool | None


class Environment(_Strict):
    """The machine that ran it."""

    python: str
    torch: str
    device: str
    precision: str
    threads: Count
    mixer_backend: str | None = Field(
        description="what served the ops of the core on the test part (in training where there is none), null for none"
    )
    world_size: Count
    deterministic: bool | None


class Metric(_Strict):
    """A value with its interval, null where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    better: Literal["higher", "lower"]


class Interval(_Strict):
    """How the intervals were made."""

    method: str
    level: float
    resamples: Count
    seed: Count


class Predictions(_Strict):
    """The rows that the metrics are recomputed from."""

    sha256: Hash
    rows: Count
    bytes: Count


class TrainingCost(_Strict):
    """What it took; seconds are wall time on a machine that may have been shared."""

    train_seconds: Seconds
    train_steps: Count
    peak_memory_bytes: Count | None
    train_samples_per_second: Seconds | None


class Cost(TrainingCost):
    """The same, with what evaluating took and where the best weights were."""

    best_step: Count | None
    eval_seconds: Seconds


class _Run(_Strict):
    """What is known of a run, whether or not something was held out."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    data: Data
    model: ModelFacts
    recipe: RecipeFacts
    seed: Count
    code: Code
    environment: Environment
    created: str = Field(description="UTC, ISO 8601")


class Record(_Run):
    """One run's submission."""

    benchmark: Benchmark
    primary: Name
    metrics: dict[Name, Metric]
    interval: Interval
    floor: dict[Name, float | None] = Field(description="the task's trivial model on the same rows")
    slices: dict[Name, dict[Name, Metric]] = {}
    predictions: Predictions
    cost: Cost

    @model_validator(mode="after")
    def _hangs_together(self) -> Record:
        if "test" not in self.data.n:
            raise ValueError("data.n states no test part")
        if not {"model", "data"} <= self.recipe.scientific.keys():
            raise ValueError("recipe.scientific states no model or data")
        for where, found in {"metrics": self.metrics, **self.slices}.items():
            if self.primary not in found:
                raise ValueError(f"{where} holds no {self.primary}, which is primary")
        return self

    @property
    def id(self) -> str:
        """Content address: the first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hash_json(self.model_dump())[:16]

    @property
    def fold(self) -> str | None:
        """The name of the fold that was tested, of a split into folds."""
        split = self.benchmark.split or ""
        return split if re.fullmatch(r"fold\d+", split) else None

    def metric_options(self) -> dict[str, Any]:
        """The options of `metrics.compute` among the protocol."""
        from ..zoo import metrics

        known, protocol = metrics.TASKS[self.benchmark.task].options, self.benchmark.protocol.items()
        return {name: tuple(value) if isinstance(value, list) else value for name, value in protocol if name in known}

    def board(self) -> str:
        """The records that may stand in one table share this; the folds of a data set are taken together."""
        benchmark = self.benchmark.model_dump()
        if self.fold:
            return hash_json(benchmark | {"split": None, "data": self.data.manifest_sha256})
        return hash_json({"benchmark": benchmark, "split": self.data.split_sha256})

    def settings(self) -> dict[str, dict]:
        """The recipe by section, but for the fold: what rows of one model differ in.

        A setting that is off, or does what was done before it was there (`AS_BEFORE`), counts as absent: records from
        before it existed go on with those made since.
        """
        recipe = {
            section: {
                name: value
                for name, value in settings.items()
                if value is not None and value is not False and value != AS_BEFORE.get(f"{section}.{name}")
            }
            for section, settings in self.recipe.scientific.items()
        }
        if self.fold:
            recipe["data"].pop("split", None)
        if self.recipe.code:  # a file of one name may hold another model
            recipe["code"] = dict(self.recipe.code)
        return recipe

    def entry(self) -> tuple[str, str]:
        """The records that may stand in one row of a board share this: the model and its settings."""
        return self.model.name, hash_json(self.settings())


class Final(_Run):
    """A run that was trained on everything: what it is, without a score, since nothing was held out."""

    trained_on: TrainedOn
    cost: TrainingCost


def _validated(schema: type[_Strict], path: Path, what: str):
    """A file of a schema; raises `ZooError` with the first key that is wrong."""
    try:
        return schema.model_validate(read_json(path, largest=LARGEST_RECORD))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or what
        raise ZooError(f"{path}: {place}: {first['msg']}; {what}s are written by runs, not by hand") from error


def read_final(path: Path) -> Final:
    """The `final.json` of a run on everything, validated."""
    return _validated(Final, path, "file")


def read_record(path: Path) -> Record:
    """A record file, validated; raises `ZooError` with the first key that is wrong."""
    from ..zoo import metrics

    record = _validated(Record, path, "record")
    task = record.benchmark.task
    if task not in metrics.TASKS:
        raise ZooError(f"{path}: {unknown('task', task, metrics.TASKS)}")
    for found in (record.metrics, *record.slices.values()):
        for name, metric in found.items():
            if name.split("@")[0] not in metrics.TASKS[task].metrics:
                raise ZooError(f"{path}: {unknown('metric', name, metrics.TASKS[task].metrics)}")
            better = "lower" if metrics.TASKS[task].lower_is_better(name) else "higher"
            if metric.better != better:
                raise ZooError(f"{path}: {name} is better {better}, not {metric.better}; the record is wrong")
    with reading(path, "record", "records are written by runs, not by hand"):
        primary = metrics.TASKS[task].primary_for(**record.metric_options())
    if record.primary != primary:
        raise ZooError(f"{path}: primary is {record.primary}, and {primary} of its task; the record is wrong")
    return record
