"""Recipes: one YAML file that reproduces one result; loaded, completed, checked, saved, hashed.

Id: `<model>/<dataset>[-<task>][@<split>]`, for example `sasrec/ml-100k@global-time`. The file is
`configs/<domain>/<dataset>/<model>[-<task>][@<split>].yaml`; where there is none for a split or task, the file of the
plain pair serves with that one setting changed, and a pair without any file runs on defaults (both are said). Sections
`model`, `data`, `task`, `train` are checked against the constructors' signatures.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from .errors import ZooError, nearest, unknown
from .files import hash_file, hash_json, write_text
from .foreign import parse_yaml, read_yaml, safe_name
from .mixers import MIXERS
from .registry import ROOT, Entry, entries, find
from .settings import checked
from .source import arguments, stated
from .trust import code_file, code_hash, read_code, trusting, typed

SECTIONS = ("model", "data", "task", "train")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: a name and constructor arguments per section."""

    id: str
    model: dict
    data: dict
    task: dict
    train: dict
    seed: int
    note: str = ""
    start: str | None = None  #: hash of the weights of `train.init_from`, where a run has noted it
    #: absolute path -> SHA-256 of each file from outside the zoo that its names are of
    code: dict[str, str] = field(default_factory=dict)

    def trusted(self):
        """A block in which the files of `code` may run: `load` refused those that nobody typed."""
        return trusting(map(Path, self.code))

    @property
    def words(self) -> str:
        """The id as it is typed from any folder: code files by their whole path."""
        named = {Path(file).name: file for file in self.code}
        return re.sub(r"[^/:@]+\.py", lambda found: named.get(found[0], found[0]), self.id)

    def code_of(self, section: str) -> str | None:
        """SHA-256 of the code file that a section's name is the path of; None where it is the zoo's or a plug-in's."""
        return self.code.get(str(code_file(getattr(self, section)["name"])[0]))

    def arguments(self, section: str) -> dict:
        """The constructor arguments of a section, without its name."""
        return {key: value for key, value in getattr(self, section).items() if key != "name"}

    def resolved(self) -> dict:
        """Everything, as saved in a run's `recipe.yaml`."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return {"id": self.id, **sections, "seed": self.seed, **({"code": self.code} if self.code else {})}

    def scientific(self) -> dict:
        """What decides the result: without paths, loader and machine settings, and the seed.

        A key that came after results were recorded is left out while it has the value that does what was done before
        it (`added_later` of the class that takes it), so that the same recipe has the same hash in every version.
        Weights that training starts from stand as their hash.
        """
        from .train.config import OPERATIONAL, TrainConfig

        with self.trusted():
            task, dataset, model = (
                find(kind, getattr(self, section)["name"]).load()
                for kind, section in (("task", "task"), ("dataset", "data"), ("model", "model"))
            )
        sections = {
            "model": _but(self.model, added_later(model)),
            "data": _but(self.data, added_later(dataset), "root"),
            "task": _but(self.task, added_later(task), *task.operational),
        }
        named = {section: {**values, "name": Path(values["name"]).name} for section, values in sections.items()}
        train = _but(self.train, added_later(TrainConfig), *OPERATIONAL)
        if "init_from" in train:
            train["init_from"] = self.start_sha256()
        return {**named, "train": train}

    def start_sha256(self) -> str | None:
        """SHA-256 of the weights that training starts from, None for none."""
        from .train.weights import weights_file

        if self.train["init_from"] is None:
            return None
        return self.start or hash_file(weights_file(self.train["init_from"]))

    def hash(self) -> str:
        """SHA-256 of the scientific part."""
        return hash_json(self.scientific())

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML."""
        write_text(path, yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True))


def added_later(cls: type) -> dict:
    """Arguments of a class that results were recorded without, with the value that does what was done before them."""
    stated = (vars(base).get("added_later", {}) for base in reversed(cls.__mro__))
    return {name: value for one in stated for name, value in one.items()}


def _but(values: Mapping, later: Mapping, *names: str) -> dict:
    """A section without `names`, and without what is in `later` at its value there."""
    kept = {key: value for key, value in values.items() if key not in names}
    return {key: value for key, value in kept.items() if key not in later or value != later[key]}


def recipe_files() -> dict[str, Path]:
    """Recipe id to file, for every recipe of the zoo."""
    found = {}
    pattern = rf"([^@]+?)((?:-(?:{'|'.join(entries('task'))}))?(?:@.+)?)"
    for file in sorted(ROOT.glob("configs/*/*/*.yaml")):
        model, extra = re.fullmatch(pattern, file.stem).groups()
        found[f"{model}/{file.parent.name}{extra}"] = file
    return found


def load(source: str, overrides: Iterable[str] = (), *, sample: bool = False, words: Iterable[str] = ()) -> Recipe:
    """The recipe of an id or a YAML file, with `key.sub=value` overrides, checked and completed with defaults.

    Code files run where the id, an override, or one of the further `words` that the user typed is their path; those
    that a YAML file names do not (`trust.py`).
    """
    overrides = list(overrides)
    raw, recipe_id, note = _source(source)
    changes = [parse_override(text) for text in overrides]
    with typed(*words, *typed_names(source, overrides)):
        _check_names(_changed(copy.deepcopy(raw), changes, source), recipe_id)
        if sample:
            _shrink(raw, recipe_id)
        return _check(_changed(raw, changes, source), recipe_id, note)


def of_split(source: str, split: str) -> str:
    """The id of the same recipe on another split."""
    model, slash, rest = _split(source)
    return f"{model}{slash}{rest.partition('@')[0]}@{split}"


def differences(wanted: Recipe, base: Recipe) -> list[str]:
    """The overrides that make `wanted` of a recipe with the same names; those of the machine are left out."""
    from .train.config import OPERATIONAL

    changed = {
        f"{section}.{key}": value
        for section in SECTIONS
        for key, value in getattr(wanted, section).items()
        if value != getattr(base, section).get(key) and not (section == "train" and key in OPERATIONAL)
    } | ({"seed": wanted.seed} if wanted.seed != base.seed else {})

    def written(value) -> str:
        text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf)
        return text.strip()[1:-1]  # of a list, where YAML puts no end behind it

    return [f"{key}={written(value)}" for key, value in changed.items()]


def check_names(source: str, overrides: Iterable[str] = ()) -> None:
    """Refuse what `load` would refuse by its name, before a model, data set or task is imported."""
    raw, recipe_id, _ = _source(source)
    _check_names(_changed(raw, [parse_override(text) for text in overrides], source), recipe_id)


def named(source: str) -> dict[str, Entry]:
    """The entries of `model`, `data` and `task` that an id or a YAML file names; nothing is imported."""
    raw, recipe_id, _ = _source(source)
    return _named({section: _section(raw, section, recipe_id) for section in SECTIONS})


def read_by(recipe: Recipe, reader: str, changes: Mapping) -> Recipe:
    """A recipe whose files are read by another adapter, or with other arguments of its own; types are checked."""
    kept = recipe.arguments("data") if reader == recipe.data["name"] else {}
    values = checked("data", find("dataset", reader).load(), {**kept, **changes}, set(), recipe.id)
    return replace(recipe, data={"name": reader, **values})


def _named(given: dict) -> dict[str, Entry]:
    return {s: find("dataset" if s == "data" else s, given[s]["name"]) for s in ("model", "data", "task")}


def _source(source: str) -> tuple[dict, str, str]:
    """The keys of an id or a YAML file, the recipe's id and a note."""
    if not source.endswith((".yaml", ".yml")):
        raw, note = _by_id(source)
        return raw, short_id(source), note
    if not Path(source).is_file():
        raise ZooError(f"no file {source}; give a recipe id (`zoo list recipes`) or the path of a YAML file")
    raw = _read(Path(source))
    _refuse_changed(raw, source)
    stem = re.sub(r"[^A-Za-z0-9._@+:-]+", "-", Path(source).stem).strip(".") or "recipe"
    return raw, _checked_id(raw["id"], source) if "id" in raw else stem, ""


def _changed(raw: dict, changes: Iterable[tuple[list[str], object]], source: str) -> dict:
    for path, value in changes:
        _set(raw, path, value)
    for key in raw:
        if key not in (*SECTIONS, "seed", "id"):
            raise unknown("key", key, (*SECTIONS, "seed"), where=f"recipe {source}")
    _refuse_class_paths(raw, source)
    return raw


def _check_names(raw: dict, recipe_id: str) -> None:
    """Names, keys and the split, as far as the sources of model, data set and task tell them."""
    from .train.config import TrainConfig

    given = {section: _section(raw, section, recipe_id) for section in SECTIONS}
    found = _named(given)
    tasks = stated(found["data"], "tasks")
    if tasks and given["task"]["name"] not in tasks:
        raise unknown("task", given["task"]["name"], tasks, where=f"data set {given['data']['name']}")
    skip = {"model": stated(found["model"], "given", ()), "task": ("model", "spec")}
    for section in SECTIONS:
        valid = arguments(found[section]) if section in found else {field.name: () for field in fields(TrainConfig)}
        if valid is None:  # its source does not tell; `_check` asks the constructor
            continue
        for key in given[section]:
            if key != "name" and (key not in valid or key in skip.get(section, ())):
                names = [f"{section}.{name}" for name in valid if name not in skip.get(section, ())]
                raise unknown("key", f"{section}.{key}", names, where=f"recipe {recipe_id}")
        split = given[section].get("split")
        if section == "data" and isinstance(split, str) and valid.get("split") and split not in valid["split"]:
            raise unknown("split", split, valid["split"], where=f"recipe {recipe_id}")
    if found["model"].module.startswith("statezoo."):  # another's `mixer` may be anything
        _check_mixers(given["model"], recipe_id)


def _check_mixers(model: Mapping, recipe_id: str) -> None:
    """Names of mixers in a model's section, of one for all layers or of a list of them."""
    for key in ("mixer", "mixers", "attention"):
        wanted = model.get(key)
        for one in wanted if isinstance(wanted, list) else [wanted]:
            name = one.get("name") if isinstance(one, dict) else one
            if isinstance(name, str) and name not in MIXERS:
                raise unknown("mixer", name, MIXERS, where=f"recipe {recipe_id} (model.{key})")


def _refuse_changed(raw: dict, source: str) -> None:
    """Take `code` out of a run's recipe, and raise where a file that it names is not the one that ran then."""
    said = raw.pop("code", None) or {}
    if not isinstance(said, dict):
        raise ZooError(f"{source}: code is no mapping of files to their SHA-256; restore it, or leave it out")
    names = [part.get("name") for part in raw.values() if isinstance(part, dict)]
    for file in [code_file(name)[0] for name in names if isinstance(name, str)]:
        if file and file.is_file() and said.get(str(file), now := code_hash(read_code(file))) != now:
            raise ZooError(
                f"{file}: has changed since {source} was written; put it back, or to go on with what it is now delete "
                f"`code` in {source}"
            )


def _checked_id(given: object, source: str) -> str:
    """An `id:` out of a file, each part of which is a name."""
    if not isinstance(given, str) or not given:
        raise ZooError(f"{source}: its id is {str(given)[:80]!r}; write <model>/<dataset>, or leave it out")
    for part in given.split("/"):
        safe_name(part, "the part of its id", source)
    return given


def _refuse_class_paths(value, recipe_id: str) -> None:
    """Refuse `class_path` wherever it stands: jsonargparse imports what it names where any value is taken."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key in ("class_path", "init_args"):
            raise ZooError(f"recipe {recipe_id}: {key} names code, which no recipe runs; leave it out")
        if isinstance(inner, (dict, list)):
            _refuse_class_paths(inner, recipe_id)


def _shrink(raw: dict, recipe_id: str) -> None:
    """The settings of `--sample`; overrides come after them."""
    given = {section: _section(raw, section, recipe_id) for section in SECTIONS}
    presets = {
        "model": find("model", given["model"]["name"]).load().tiny,
        "data": find("dataset", given["data"]["name"]).load().tiny,
        "train": find("task", given["task"]["name"]).load().sample_train,
    }
    for section, preset in presets.items():
        raw[section] = {**given[section], **preset}


def _section(raw: dict, section: str, recipe_id: str) -> dict:
    """A section's keys; all but `train` state a name."""
    given = {} if raw.get(section) is None else raw[section]
    if not isinstance(given, dict):
        raise ZooError(f"recipe {recipe_id}: {section} is {given!r}, which holds no keys; write {section}.key=value")
    if section != "train" and not isinstance(given.get("name"), str):
        kind = "dataset" if section == "data" else section
        raise ZooError(f"recipe {recipe_id}: {section}.name is missing; `zoo list {kind}s` shows the names")
    return given


def _split(source: str) -> tuple[str, str, str]:
    """Model, slash, and the rest of an id; a model may be a path: dir/net.py/digits, dir/net.py:wide/digits."""
    return re.fullmatch(r"(.*?\.py(?::[^/]+)?(?=/)|[^/]*)(/?)(.*)", source, re.DOTALL).groups()


def typed_names(source: str, overrides: Iterable[str] = ()) -> list[str]:
    """The names of models, data sets and tasks among a user's words: of an id, and of overrides."""
    names: list = []
    if not source.endswith((".yaml", ".yml")):
        model, _, rest = _split(source)
        names += [model, rest.partition("@")[0]]
    wanted: dict = {}
    for text in overrides:
        _set(wanted, *parse_override(text))
    names += [part.get("name") for part in wanted.values() if isinstance(part, dict)]
    return [name for name in names if isinstance(name, str)]


def short_id(source: str) -> str:
    """An id as runs and records keep it: the folders of code files, which are the user's own, left out."""
    model, slash, rest = _split(source)
    data, at, split = rest.partition("@")
    short = (re.sub(r"^.*/", "", name, flags=re.DOTALL) if ".py" in name else name for name in (model, data))
    return _checked_id(f"{slash}".join(short) + at + split, "the recipe")


def _by_id(source: str) -> tuple[dict, str]:
    model, slash, rest = _split(source)
    files = recipe_files()
    if not slash:
        raise unknown("recipe", source, files)
    find("model", model)
    dataset, _, split = rest.partition("@")
    task = None
    if not dataset.endswith(".py") and dataset not in entries("dataset"):
        task = next((name for name in entries("task") if dataset.endswith(f"-{name}")), None)
        dataset = dataset[: -len(task) - 1] if task else dataset
        for known in [] if task else entries("dataset"):
            rest = dataset.removeprefix(f"{known}-")
            if rest != dataset and nearest(rest, entries("task")):
                raise unknown("task", rest, entries("task"), where=f"recipe {source}")
    entry = find("dataset", dataset)
    folder = f"{model}/{dataset.replace(':', '-')}"
    wanted = {
        f"{folder}{t}{s}": (t, s)
        for t in ({f"-{task}"} if task else {""}) | {""}
        for s in {f"@{split}" if split else "", ""}
    }
    exact = sorted((name for name in wanted if name in files), key=len, reverse=True)
    if exact:
        raw = _read(files[exact[0]])
        note = "" if exact[0] == source.replace(":", "-") else f"recipe {exact[0]} with the settings of the id"
    else:
        raw, note = (
            {"model": {"name": model}, "data": {"name": dataset}, "task": {}},
            f"no recipe for {source}: defaults",
        )
    raw.setdefault("task", {})
    if task:
        raw["task"]["name"] = task
    if split:
        raw.setdefault("data", {})["split"] = split
    if "name" not in raw["task"]:
        tasks = stated(entry, "tasks") or entry.load().tasks
        raw["task"] = {"name": tasks[0], **raw["task"]}
    return raw, note


def _read(file: Path) -> dict:
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise ZooError(f"{file}: a recipe is a mapping with {', '.join(SECTIONS)}; mend the file")
    return raw


def parse_override(text: str) -> tuple[list[str], object]:
    """The path and the value of `key.sub=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ZooError(f"'{text}' is no override; write key.sub=value, for example train.lr=1e-3")
    try:
        return key.split("."), parse_yaml(value)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None)
        why = f" ({why})" if why else ""
        raise ZooError(f"override '{text}': the value is not valid YAML{why}; mend or quote it") from error


def _set(raw: dict, path: list[str], value) -> None:
    *parents, last = path
    for key in parents:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            raise ZooError(f"override {'.'.join(path)}: '{key}' holds a value, not keys; drop the last part")
    raw[last] = value


def _check(raw: dict, recipe_id: str, note: str) -> Recipe:
    from .train.config import TrainConfig

    raw = copy.deepcopy(raw)
    raw |= {section: _section(raw, section, recipe_id) for section in SECTIONS}
    names, classes, defaults, code = {}, {"train": TrainConfig}, {"train": {}}, {}
    for section in ("model", "data", "task"):
        entry = find("dataset" if section == "data" else section, raw[section]["name"])
        names[section], classes[section] = _found_from_anywhere(raw[section].pop("name")), entry.load()
        if entry.sha256:
            code[str(entry.file)] = entry.sha256
        defaults[section] = entry.config if section == "model" else {}
    subset = find("dataset", names["data"]).key.partition(":")[2]
    if subset and raw["data"].setdefault("subset", subset) != subset:
        given = raw["data"]["subset"]
        raise ZooError(f"recipe {recipe_id}: data.subset={given} contradicts {names['data']}; drop one of the two")
    if names["task"] not in classes["data"].tasks:
        raise unknown("task", names["task"], classes["data"].tasks, where=f"data set {names['data']}")
    if classes["data"].by_task and (given := raw["data"].setdefault("task", names["task"])) != names["task"]:
        raise ZooError(f"recipe {recipe_id}: data.task={given} contradicts task.name={names['task']}; drop data.task")
    seed = raw.pop("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ZooError(f"recipe {recipe_id}: seed {seed!r} must be a whole number from 0")
    done = {}
    skip = {"model": set(classes["model"].given), "task": {"model", "spec"}, "data": set(), "train": set()}
    for section in SECTIONS:
        given = {**defaults[section], **raw[section]}
        done[section] = {
            **({"name": names[section]} if section in names else {}),
            **checked(section, classes[section], given, skip[section], recipe_id),
        }
    return Recipe(recipe_id, **done, seed=seed, note=note, code=code)


def _found_from_anywhere(name: str) -> str:
    """A path as an absolute one, so that a run's recipe can be loaded from any folder."""
    file, inner = code_file(name)
    return name if file is None else f"{file}:{inner}" if inner else str(file)
