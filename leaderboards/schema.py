"""The record: an immutable JSON that states what one run was and what it scored. Unknown is null, never invented."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from ..zoo.files import hash_json

SCHEMA_VERSION = "1"
LARGEST_PREDICTIONS = 256 * 1024  #: bytes of predictions that may be committed beside a record


class _Strict(BaseModel):
    """A field that later versions of the schema added has the default None and is written only where it is set.

    So records from before it keep their text, and with it their id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_unset(self, write):
        fields = type(self).model_fields
        return {name: value for name, value in write(self).items() if value is not None or fields[name].is_required()}


class Benchmark(_Strict):
    """What makes scores comparable: the same test, measured in the same way."""

    dataset: str
    version: str
    task: str
    split: str | None
    split_version: str | None = Field(None, description="raised where the split is made in another way than before")
    protocol: dict[str, Any] = Field(description="task options that decide the metrics")
    metric_version: str
    sample: bool = Field(description="True: the embedded synthetic sample, never shown beside real data")

    @property
    def name(self) -> str:
        """Folder name: `<dataset>-<task>[@<split>]`."""
        return f"{self.dataset.replace(':', '-')}-{self.task}" + (f"@{self.split}" if self.split else "")


class Data(_Strict):
    """The exact data: hash of the source files, of the split, and sizes."""

    manifest_sha256: str
    split_sha256: list[str]
    group: str
    n: dict[str, int]
    facts: dict[str, Any] | None = Field(None, description="what reading and splitting counted or dropped")


class ModelFacts(_Strict):
    """The model as it was."""

    name: str
    parameters: int
    macs: int | None = Field(description="multiply-accumulates of one sample's forward pass")
    weights_sha256: str
    prep_sha256: str
    pretrained: str | None = Field(description="what the weights started from, null for none")


class RecipeFacts(_Strict):
    """The scientific part of the resolved recipe: no paths, no machine settings."""

    id: str
    scientific: dict[str, Any]
    sha256: str


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
    threads: int
    mixer_backend: str | None = Field(description="what served the ops of the core on the test part, null for none")
    world_size: int
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
    resamples: int
    seed: int


class Predictions(_Strict):
    """The rows that the metrics are recomputed from."""

    sha256: str
    rows: int
    bytes: int


class Cost(_Strict):
    """What it took; seconds are wall time on a machine that may have been shared."""

    train_seconds: float
    train_steps: int
    best_step: int | None
    eval_seconds: float
    peak_memory_bytes: int | None
    train_samples_per_second: float | None


class Record(_Strict):
    """One run's submission."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    benchmark: Benchmark
    data: Data
    model: ModelFacts
    recipe: RecipeFacts
    seed: int
    code: Code
    environment: Environment
    primary: str
    metrics: dict[str, Metric]
    interval: Interval
    floor: dict[str, float | None] = Field(description="the task's trivial model on the same rows")
    slices: dict[str, dict[str, Metric]] = {}
    predictions: Predictions
    cost: Cost
    created: str = Field(description="UTC, ISO 8601")

    @property
    def id(self) -> str:
        """Content address: the first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hash_json(self.model_dump())[:16]

    @property
    def fold(self) -> str | None:
        """The name of the fold that was tested, of a split into folds."""
        split = self.benchmark.split or ""
        return split if re.fullmatch(r"fold\d+", split) else None

    def board(self) -> str:
        """The records that may stand in one table share this; the folds of a data set are taken together."""
        benchmark = self.benchmark.model_dump()
        if self.fold:
            return hash_json(benchmark | {"split": None, "data": self.data.manifest_sha256})
        return hash_json({"benchmark": benchmark, "split": self.data.split_sha256})

    def settings(self) -> dict[str, dict]:
        """The recipe by section, but for the fold: what rows of one model differ in.

        A setting that is off counts as absent: records from before it existed go on with those made since.
        """
        recipe = {
            section: {name: value for name, value in settings.items() if value is not None and value is not False}
            for section, settings in self.recipe.scientific.items()
        }
        if self.fold:
            recipe["data"].pop("split", None)
        return recipe

    def entry(self) -> tuple[str, str]:
        """The records that may stand in one row of a board share this: the model and its settings."""
        return self.model.name, hash_json(self.settings())
