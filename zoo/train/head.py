"""The head of a run, written before its first step: `prep/`, `data.json` and, last, `recipe.yaml`.

Where `recipe.yaml` is, the head is whole; where it is not, nothing has begun and the same command begins anew. The head
says what the run is made of: its recipe as it was, the data and their split by hash, what was fitted on them, and the
code that runs, as it was at the start.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from ... import __version__
from ..errors import ZooError
from ..files import atomic_folder, clean, hash_folder, hash_json, read_json, write_json
from ..foreign import refuse_links_out
from ..recipe import SECTIONS, Recipe, load, short_id, typed_names
from ..registry import ROOT
from ..runs import FINISHED, require_begun
from .config import HARMLESS, MACHINE

#: what a run writes, whose temporaries are cleaned where it goes on
FILES = (
    "recipe.yaml", "data.json", "metrics.csv", "config.json", "model.safetensors", "predictions.npz", *FINISHED,
)  # fmt: skip


def write(run: Path, recipe: Recipe, dataset, spec, sample: bool) -> None:
    """Write the head of a run; what an earlier attempt left of it is replaced."""
    tidy(run)
    facts = {
        "sample": sample,
        "folder": str(dataset.folder),
        **fingerprint(dataset),
        "prep_sha256": write_prep(run, dataset, spec),
        "recipe": recipe.resolved(),
        "start_sha256": recipe.start_sha256(),
        "code": code(),
    }
    write_json(run / "data.json", facts)
    recipe.save(run / "recipe.yaml")


def write_prep(run: Path, dataset, spec) -> str:
    """Write what was fitted on the data, whole, and return its hash."""
    with atomic_folder(run / "prep") as folder:
        spec.save(folder)
        dataset.save_prep(folder)
    return hash_folder(run / "prep")


def go_on(run: Path, recipe: Recipe, dataset, spec, begun: bool) -> list[str]:
    """Check that data and code are what the run began with, and mend its head; lines about what the user should know.

    `begun`: a state was saved; where none was, the run starts again, by the code that runs now.
    """
    tidy(run)
    head, now = read(run), code()
    if changed := changes(dataset, head):
        raise ZooError(f"{run}: {changed} since it began; put the data back, or start a new run")
    if write_prep(run, dataset, spec) != head.get("prep_sha256"):
        raise ZooError(
            f"{run}: what is fitted on the data comes out otherwise than when it began, though the data are the same; "
            "resume with the code and the versions that it began with, or start a new run"
        )
    # `recipe` carries the hash that the head has noted; here the file itself is meant
    if not begun and replace(recipe, start=None).start_sha256() != head.get("start_sha256"):
        raise ZooError(
            f"{run}: the weights at train.init_from have changed since it began; put them back, or start a new run"
        )
    if now != head["code"]:
        then = head["code"]
        if begun and now["commit"] == then["commit"] and now["version"] == then["version"]:
            kept = {**then, "dirty": then["dirty"] or now["dirty"]}
        else:  # no commit stands for all of the run
            kept = {**then, "dirty": True} if begun else now
        write_json(run / "data.json", {**head, "code": kept})
        if begun and now["commit"] != then["commit"]:
            return [
                f"the code has changed since the run began (commit {str(then['commit'])[:12]}, now "
                f"{str(now['commit'])[:12]}); the record will say that it is no commit's"
            ]
    return []


def read(run: Path) -> dict:
    """The head's facts; an error where there are none."""
    head = read_json(run / "data.json") if (run / "data.json").is_file() else None
    whole = isinstance(head, dict) and isinstance(head.get("sample"), bool)
    if not whole or not all(isinstance(head.get(name), dict) for name in ("recipe", "code")):
        raise ZooError(
            f"{run / 'data.json'}: does not say what the run is made of (it is damaged, or of another version of "
            "statezoo); put it back, or start a new run"
        )
    return head


def resumed(run: Path, source: str, overrides: list[str]) -> tuple[Recipe, bool]:
    """The run's own recipe, with machine settings of `overrides`, and whether it is on the sample.

    What would change the result, in the file or in the overrides, is refused.
    """
    require_begun(run)
    refuse_links_out(run)
    words = typed_names(source, overrides)
    head, saved = read(run), load(str(run / "recipe.yaml"), words=words)
    if not source.endswith((".yaml", ".yml")) and saved.id != id_of(source):
        raise ZooError(f"{run} is a run of {saved.id}, not of {source}; `zoo train {saved.words} --resume {run}`")
    edited = _other(head["recipe"], saved)
    if edited:
        raise ZooError(
            f"{run / 'recipe.yaml'}: has been edited, the run began with {edited}; put it back, or start a new run"
        )
    recipe = load(str(run / "recipe.yaml"), overrides, words=words)
    if changed := _other(head["recipe"], recipe):
        raise ZooError(f"{run}: was started with {changed}; drop the override or start a new run")
    return Recipe(**{**vars(recipe), "start": head.get("start_sha256")}), head["sample"]


def id_of(source: str) -> str:
    """The id of the recipe that a command names; of a YAML file its path."""
    return source if source.endswith((".yaml", ".yml")) else short_id(source)


def _other(began: dict, recipe: Recipe) -> str:
    """`section.key=value` of the first setting that is not as it was, "" where all that count are."""
    free = {("train", name) for name in (*HARMLESS, *MACHINE)} | {("data", "root")}
    now = recipe.resolved()
    for name in ("id", "seed"):
        if began.get(name) != now[name]:
            return f"{name}={began.get(name)}"
    for section in SECTIONS:
        then = began.get(section) or {}
        for key in sorted({*then, *now[section]}):
            if (section, key) not in free and then.get(key) != now[section].get(key):
                value = then.get(key)
                return f"{section}.{key}={'null' if value is None else value}"
    return ""


def tidy(run: Path) -> None:
    """Remove the temporaries of processes that were killed while they wrote this run."""
    clean(run, *FILES, "prep")
    clean(run / "checkpoints", "*.ckpt", "*.safetensors")
    clean(run / "plots", "*")


def fingerprint(dataset) -> dict[str, str]:
    """Hashes of the files and of the split."""
    return {"manifest_sha256": hash_json(dataset.manifest()), "split_sha256": dataset.split_hash()}


def changes(dataset, then: dict) -> str:
    """In words what is no longer as in an earlier `fingerprint`; "" where nothing is known to differ."""
    now = fingerprint(dataset)
    told = {"manifest_sha256": "files of the data set have changed", "split_sha256": "the split has changed"}
    return " and ".join(words for key, words in told.items() if then.get(key, now[key]) != now[key])


def code() -> dict:
    """Version, commit and whether it was edited: of the git checkout, or of the archive (`git archive` writes it)."""

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if (ROOT / ".git").exists():
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
        return {"version": __version__, "commit": commit, "dirty": None if status is None else bool(status)}
    archived = ROOT / ".git_archival.txt"
    commit = archived.read_text().split(": ")[1].strip() if archived.is_file() else ""
    # an archive cannot tell whether somebody edited it
    return {"version": __version__, "commit": commit if len(commit) == 40 else None, "dirty": None}
