"""Training the model that serves on everything (`Dataset.split_of_all`), after a run that held something out.

There is nothing to stop by or to choose weights by: it trains for the epochs that the other run found best, without
validation, and keeps the last weights. A schedule of the learning rate spans these epochs.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from ..data.base import Dataset
from ..errors import ZooError
from ..recipe import Recipe, differences, load, of_split


def refuse_patience(recipe: Recipe, dataset: Dataset) -> None:
    """Raise where training is to stop early and there is nothing to stop by."""
    patience = recipe.train["patience"]
    if patience is not None and not dataset.evaluates:
        raise ZooError(
            f"train.patience={patience}: data.split={dataset.split_of_all} holds nothing out to stop by; set "
            "train.patience=null, and train.epochs to the best of an earlier run"
        )


def command(recipe: Recipe, dataset: Dataset, run: Path, epochs: int | None) -> str:
    """The command that trains what the finished `run` trained on everything, for `epochs` (None: it has none).

    It has all settings of the run: by the recipe's id where that is one, else by the run's own recipe.
    """
    split, sample = dataset.split_of_all, dataset.is_sample
    train = recipe.train | {"patience": None, "max_steps": None} | ({} if epochs is None else {"epochs": epochs})
    wanted = replace(recipe, data=recipe.data | {"split": split}, train=train)
    with recipe.trusted():
        try:
            source = of_split(recipe.words, split)
            base = load(source, sample=sample)
        except ZooError:  # the id is a name that a YAML file gave itself
            source = str(run / "recipe.yaml")
            base = load(source, sample=sample)
    # of a file somebody may have written, the code that it names runs where a flag says so
    flags = ["--sample"] * sample + ["--trust-code"] * bool(recipe.code and source.endswith(".yaml"))
    first = [] if epochs is None else [f"train.epochs={epochs}", "train.patience=null"]
    words = [*first, *(word for word in differences(wanted, base) if word not in first)]
    return shlex.join(["zoo", "train", source, *flags, *words])
