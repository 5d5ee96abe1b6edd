"""The adapter contract: a plain class that knows one data source.

A subclass states class attributes (literals, so that they are known without importing it), and implements two
methods: `write_sample`, which writes a small learnable data set in the source's own format, and `build`, which
reads the files and returns a `Spec` and the parts of the split. Fetching, checking, hashing, the leakage assertion,
the sample and the data module come from here.
"""

from __future__ import annotations

import inspect
import json
import secrets
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from ..errors import ZooError, unknown
from ..files import (
    atomic_folder,
    cache_root,
    clean,
    data_root,
    hash_file,
    hash_json,
    locked,
    read_json,
    write_json,
)
from ..foreign import below
from ..registry import entries
from .cache import Arrays, cached
from .own import own_code, own_settings, source
from .spec import Spec
from .splits import assert_disjoint, split_hash


class Part:
    """One part of a split: samples with stable ids and groups, delivered as whole batches of numpy arrays.

    This class serves arrays held in memory (or memory-mapped); an adapter with lazy samples subclasses it and
    overrides `batch`.
    """

    #: whether `batch` draws anything: where it does not, no seeds are made for it
    augments = True
    #: of a file to predict for: ids that no prediction can be made for, with the reason
    unserved: Mapping[str, str] = MappingProxyType({})

    def __init__(self, arrays: Mapping[str, np.ndarray], ids: Sequence[str], groups: Sequence | None = None):
        self.arrays = dict(arrays)
        self.ids = np.asarray(ids)
        self.groups = np.asarray(ids if groups is None else groups)
        for name, array in self.arrays.items():
            if len(array) != len(self.ids):
                raise ZooError(f"part: '{name}' has {len(array)} rows for {len(self.ids)} ids; give one row per sample")

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The samples `index` stacked by name; `seeds` (one per sample; None in evaluation and without `augments`)."""
        return {name: np.asarray(array[index]) for name, array in self.arrays.items()}

    def labels(self) -> np.ndarray | None:
        """Class index per sample for class weights and balanced sampling; None where the task has none."""
        label = self.arrays.get("label")
        return None if label is None or np.ndim(label) != 1 else np.asarray(label)


class Dataset:
    """Base of every adapter; see the module's docstring and CONTRIBUTING.md."""

    domain: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    #: the kind of input that its Spec gives, so that lists know it; "" where it is known only by building
    kind: ClassVar[str] = ""
    subsets: ClassVar[tuple[str, ...]] = ()
    citation: ClassVar[str] = ""
    license: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    #: what must not cross a split: patient, specimen, scaffold, homology cluster, user/time, spatial block
    group: ClassVar[str]
    #: file name -> SHA-256 of the published release ("" where there is no fixed one)
    files: ClassVar[dict[str, str]] = {}
    #: file name -> addresses tried in order; a name ending in an archive suffix is extracted beside it
    urls: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: archive name -> SHA-256, for `urls` entries that hold several files
    archives: ClassVar[dict[str, str]] = {}
    #: True where batches depend on the task; the constructor then has an argument `task`, which the recipe fills in
    by_task: ClassVar[bool] = False
    #: arguments that say how a file is read and not what is trained: predicting on other files may change them
    reading: ClassVar[tuple[str, ...]] = ()
    #: the adapter that reads the domain's plain form, DataFrames too, for runs of this one; "" where there is none
    plain: ClassVar[str] = ""
    #: the split that trains on everything and holds nothing out, for the model that serves; "" where there is none
    split_of_all: ClassVar[str] = ""
    #: arguments that shape the data of the embedded sample (shorter sequences, fewer points)
    tiny: ClassVar[dict] = {}
    #: arguments that came after results were recorded, with the value that does what was done before (see recipe.py)
    added_later: ClassVar[dict] = {}

    def __new__(cls, *args, **kwargs):
        """Keep what an adapter is given, of which its bases may know nothing (`cached`)."""
        made = super().__new__(cls)
        made._given = args, kwargs
        return made

    def __init__(self, *, root: Path | str | None = None, subset: str | None = None):
        """`root` is the folder that holds the source's files; default `<data root>/<domain>/<name>`."""
        if (subset is not None or self.subsets) and subset not in self.subsets:
            raise unknown("subset", str(subset), self.subsets, where=self.name)
        self.subset = subset
        self.is_sample = False
        self.folder = Path(root).expanduser() if root else below(data_root(), self.domain, self.name)
        self.counts: dict[str, int] = {}
        #: further tensors that a task wants in the batches of evaluation, such as whole histories
        self.asked: set[str] = set()
        self._prepared: tuple[Spec, dict[str, Part]] | None = None

    @property
    def name(self) -> str:
        """The registry's key: of a plug-in its entry point, else the file's stem, `_` shown as `-`."""
        cls = type(self)
        found = [e for e in entries("dataset").values() if (e.module, e.cls) == (cls.__module__, cls.__qualname__)]
        if found and not any(entry.file for entry in found):
            return found[0].key
        file = source(cls)
        return (cls.__name__.lower() if file is None else file.stem).replace("_", "-")

    @property
    def key(self) -> str:
        """Name and subset, as recipes write them."""
        return f"{self.name}:{self.subset}" if self.subset else self.name

    @property
    def split_name(self) -> str | None:
        """What records and boards call the split."""
        return getattr(self, "split", None)

    @property
    def split_version(self) -> str | None:
        """Raised where a split is made in another way than before, so that boards do not mix; None: the first."""
        return None

    @property
    def evaluates(self) -> bool:
        """Whether the split holds something out: where it does not, the parts `valid` and `test` are empty."""
        return not self.split_of_all or getattr(self, "split", None) != self.split_of_all

    # what an adapter implements -----------------------------------------------------------------------------------

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Read, verify and split: the Spec and the parts `train`, `valid`, `test`."""
        raise TypeError(f"{type(self).__name__} does not implement build()")

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """Write a small learnable data set into `folder` in the source's own on-disk format."""
        raise TypeError(f"{type(self).__name__} does not implement write_sample()")

    def describe_counts(self) -> dict[str, int]:
        """What reading and splitting counted or dropped, after `prepare`; for `check`, the screen and the record."""
        return dict(self.counts)

    def assert_no_leakage(self, parts: dict[str, Part]) -> None:
        """Raise where a group is in two parts; sources whose groups are not sets of samples (time) override this."""
        assert_disjoint({name: part.groups for name, part in parts.items()}, self.group)

    def save_prep(self, folder: Path) -> None:
        """Save what was fitted on the data beyond the Spec (JSON or safetensors) into a run's `prep/`."""

    def read_for(self, trained: Dataset, changed: Collection[str] = ()) -> None:
        """Take over what decides the samples of a run that was trained on `trained`; only the reading is this one's.

        `changed`: arguments that were stated for this reading, which stay as they are.
        """
        if type(self) is not type(trained):
            raise ZooError(f"{self.name} cannot read for a run of {trained.name}; leave data.name out")

    def inference(self, source: Path, prep: Path) -> Part:
        """Samples without labels from a file or folder, read as in training and encoded with a run's `prep/`."""
        raise ZooError(
            f"{self.name} cannot predict on files yet; use `zoo eval`, or implement inference() in its adapter"
        )

    def write_evaluated(self, folder: Path) -> Path | None:
        """Write what evaluation reads of the sample's test part, targets left out, as a file or folder for `inference`.

        With it the contract holds that predicting reads as evaluation did; an adapter with `inference` implements it.
        None: evaluation makes its inputs itself, and no file holds them.
        """
        raise TypeError(f"{type(self).__name__} does not implement write_evaluated()")

    def slices(self) -> dict[str, Part]:
        """Further views of the test part that a finished run is measured on, by name; for records, not for boards."""
        return {}

    # what every adapter has ---------------------------------------------------------------------------------------

    def cached(self, key: dict, build: Callable[[], tuple[Arrays, dict]], own: bool = True) -> tuple[Arrays, dict]:
        """Arrays and JSON facts of `build()`, from the cache where they were made by the same code from the same.

        `key` holds what the zoo's reading depends on; the adapter's own code and arguments are added to it (own.py).
        An adapter that is in no file is read anew each time. `own=False`: all that is read is read by the zoo's code.
        """
        if not own:
            return cached(self.name, key, build)
        code = own_code(type(self))
        if code is None:
            arrays, facts = build()
            return arrays, json.loads(json.dumps(facts))
        given = own_settings(type(self), *self._given)
        own = ({"adapter": code} if code else {}) | ({"given": given} if given else {})
        return cached(self.name, key | own, build)

    @classmethod
    def sample(cls, seed: int = 0, folder: Path | str | None = None, **config) -> Dataset:
        """The adapter on its own sample, written once to the cache (or to `folder`) and read by the same reader.

        The cache is keyed by the code that may draw it: the adapter, its bases, this package, and what both build on.
        """
        maker = cls(**config)
        if folder is None:
            here = Path(__file__).parent
            sources = {source(base) for base in cls.__mro__[:-1]}
            in_files = None not in sources
            sources.discard(None)
            sources.update(here.glob("*.py"), (here.parent / name for name in ("seeding.py", "files.py", "foreign.py")))
            code = sorted(hash_file(file) for file in sources)
            if not in_files:  # nothing tells one text of a class in a notebook from the next
                code.append(secrets.token_hex(16))
            # what the sample is written by: the names of its file and columns
            form = {name: str(config[name]) for name in ("file", *cls.reading) if name in config}
            key = hash_json({"code": code, "seed": seed, "subset": maker.subset} | ({"form": form} if form else {}))
            folder = _cached_sample(below(cache_root(), "samples", maker.name, key[:16]), maker, seed)
        else:
            folder = Path(folder)
            with locked(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _write_sample(folder, maker, seed)
        adapter = cls(**{**config, "root": folder})
        adapter.is_sample = True
        return adapter

    def fetch(self) -> Path:
        """Bring the files to `folder`, each checked by its SHA-256; files already there are not touched."""
        from .download import download

        for name, addresses in self.urls.items():
            wanted = [name] if name in self.files else list(self.files)
            missing = [file for file in wanted if not (self.folder / file).is_file()]
            if missing and name in self.files:
                download(addresses, self.folder / name, sha256=self.files[name])
            elif missing:
                self._unpack(download(addresses, self.folder / name, sha256=self.archives.get(name, "")), missing)
        if not self.urls:  # some write their own
            self.require()
        still = [name for name in self.files if not (self.folder / name).is_file()]
        if still:
            raise ZooError(f"{self.key}: {', '.join(still)} not in {self.folder}; {self.remedy()}")
        return self.folder

    def _unpack(self, archive: Path, wanted: list[str]) -> None:
        try:
            self._take_members(archive, wanted)
        except ZooError:
            if archive.name not in self.archives:  # without a hash of its own it would be taken for good the next time
                archive.unlink(missing_ok=True)
            raise

    def _take_members(self, archive: Path, wanted: list[str]) -> None:
        from .download import extract

        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".unpack-") as temporary:
            unpacked = {path.name: path for path in extract(archive, Path(temporary) / "content")}
            for name in wanted:
                found = unpacked.get(Path(name).name)
                if found is None:
                    raise ZooError(
                        f"{archive}: holds no {name}; the source has changed, get the file from {self.homepage}"
                    )
                if self.files[name] and hash_file(found) != self.files[name]:
                    raise ZooError(
                        f"{archive}: its {name} is not the published one (SHA-256); get it from {self.homepage}"
                    )
                found.replace(self.folder / name)

    def remedy(self) -> str:
        """What a user does when files are missing."""
        if self.homepage:
            return f"get them from {self.homepage} and put them there, or add --sample to try the command"
        return "put them there, or add --sample to try the command"

    def manifest(self) -> dict[str, str]:
        """SHA-256 per file of this copy of the source."""
        self.require()
        return {name: hash_file(self.folder / name) for name in self.source_files()}

    def source_files(self) -> tuple[str, ...]:
        """The files that `build` reads, relative to `folder`."""
        return tuple(self.files)

    def require(self) -> None:
        """Make sure that the files are there, fetching them where the source allows it."""
        missing = [name for name in self.source_files() if not (self.folder / name).is_file()]
        if missing and self.urls and not self.is_sample:
            self.fetch()
        elif missing:
            raise ZooError(f"{self.key}: {', '.join(missing)} not in {self.folder}; {self.remedy()}")

    def prepare(self) -> Spec:
        """Build once, assert that no group crosses the split, and return the Spec."""
        if self._prepared is None:
            self.require()
            spec, parts = self.build()
            for needed in ("train", "valid", "test") if self.evaluates else ("train",):
                if needed not in parts or not len(parts[needed]):
                    raise ZooError(
                        f"{self.key}: the {needed} part of the split is empty; give more data or another split"
                    )
            self.assert_no_leakage(parts)
            self._prepared = spec, parts
        return self._prepared[0]

    def part(self, name: str) -> Part:
        """A part of the split by name."""
        self.prepare()
        parts = self._prepared[1]
        if name not in parts:
            raise unknown("part", name, parts, where=self.key)
        return parts[name]

    @property
    def prepared(self) -> bool:
        """Whether the parts are there: predicting needs none."""
        return self._prepared is not None

    @property
    def parts(self) -> dict[str, Part]:
        """All parts of the split."""
        self.prepare()
        return dict(self._prepared[1])

    def facts(self) -> dict[str, int | float]:
        """`describe_counts` in numbers of JSON."""
        counted = self.describe_counts()
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in counted.items()}

    def split_hash(self) -> str:
        """SHA-256 over the ids of every part."""
        return split_hash({name: part.ids for name, part in self.parts.items()})

    def check(self) -> dict:
        """Verify everything: files and hashes, counts, disjointness; raises on what is wrong, returns the facts."""
        hashes = self.manifest()
        if not self.is_sample:
            for name, wanted in self.files.items():
                if wanted and hashes[name] != wanted:
                    raise ZooError(
                        f"{self.folder / name}: SHA-256 {hashes[name][:12]}… is not the published {wanted[:12]}…; "
                        "delete it and fetch it again, or use the adapter for your own files"
                    )
        spec = self.prepare()
        return {
            "dataset": self.key,
            "version": self.version,
            "sample": self.is_sample,
            "folder": str(self.folder),
            "files": hashes,
            "kind": spec.inputs.kind,
            "group": self.group,
            "split_hash": self.split_hash(),
            "samples": {name: len(part) for name, part in self.parts.items()},
            **self.describe_counts(),
        }

    def describe(self) -> dict:
        """What the source is, without reading it."""
        return {
            "dataset": self.key,
            "summary": (inspect.getdoc(type(self)) or "").split("\n")[0],
            "domain": self.domain,
            "tasks": list(self.tasks),
            "subsets": list(self.subsets),
            "group": self.group,
            "license": self.license,
            "citation": self.citation,
            "homepage": self.homepage,
            "files": list(self.files),
            "folder": str(self.folder),
            "present": all((self.folder / name).is_file() for name in self.source_files()),
        }

    def datamodule(self, **options):
        """A LightningDataModule over this adapter, for our tasks and for anyone's Trainer."""
        from .datamodule import DataModule

        return DataModule(self, **options)


def _cached_sample(folder: Path, maker: Dataset, seed: int) -> Path:
    """The sample in the cache; one whose files are not just those that were written is drawn anew."""
    from .cache import say

    written = folder.with_suffix(".json")
    with locked(folder.with_suffix(".lock")):
        clean(folder.parent, folder.name, written.name)
        if folder.is_dir():
            try:
                then = read_json(written) if written.is_file() else None
            except ZooError:
                then = None
            now = _hashes(folder)
            if then and then == now:
                return folder
            if not (then and isinstance(then, dict) and then.items() <= now.items()):  # lost, cut or changed
                say(f"{folder}: the sample is not whole; it is drawn anew")
        _write_sample(folder, maker, seed)
        write_json(written, _hashes(folder))
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def _write_sample(folder: Path, maker: Dataset, seed: int) -> None:
    with atomic_folder(folder) as temporary:
        temporary.rmdir()  # adapters make the folder that they are given
        maker.write_sample(temporary, seed)
