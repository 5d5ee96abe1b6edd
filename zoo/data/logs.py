"""Interaction logs: the adapter base, and the lazy parts that models train and are tested on.

Training samples are windows into flat arrays, found by arithmetic when asked for: memory grows with interactions,
never with prefixes. With `windows="all-positions"` a window of up to `max_len` events trains every position at
once (each target once per epoch); with `"per-prefix"` every prefix is a sample of its own and trains its last
position alone, as the papers do and as non-causal models need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ZooError, unknown
from .base import Dataset, Part
from .log_reader import RawLog
from .log_sample import Events, generate
from .log_split import (
    SplitLog,
    assert_no_leak,
    everything,
    find_duplicates,
    global_time,
    leave_two_out,
    targets_in_history,
)
from .log_times import in_unit, parse_moment
from .spec import Inputs, Outputs, Spec, Tensor

CODE_VERSION = 4  # raise when reading, filtering or splitting changes: cached arrays are then made anew
SPLITS = ("leave-two-out", "global-time", "all")
QUANTILES = (0.8, 0.9)
WINDOWS = ("all-positions", "per-prefix")
TIMESTAMPS = ("exact", "float32")
#: of splits that have changed since their first records; boards of two versions are two boards
SPLIT_VERSIONS = {"global-time": "2"}  # 2: users below the k-core are tested, histories hold all they did


def hash_user(name: str) -> str:
    """The id of a user in prediction rows: 16 hex digits of SHA-256, so that rows hold no raw id."""
    return hashlib.sha256(f"user\x1f{name}".encode()).hexdigest()[:16]


class TrainWindows(Part):
    """Windows over the training events of all users; the last window of a user ends at its last training event."""

    augments = False

    def __init__(self, log: dict[str, np.ndarray], max_len: int, windows: str):
        self.item, self.time = log["item"], log["time"]
        self.start, self.size = log["start"][:-1], log["train_end"] - log["start"][:-1]
        self.max_len, self.per_prefix = max_len, windows == "per-prefix"
        targets = np.maximum(self.size - 1, 0)  # a user's first event has nothing before it
        per_user = targets if self.per_prefix else -(-targets // max_len)
        self.first = np.concatenate([[0], np.cumsum(per_user)])
        self.arrays: dict[str, np.ndarray] = {}
        self.ids = np.arange(self.first[-1])
        self.groups = np.zeros(0, np.int64)  # users are in every part; assert_no_leak looks at positions

    def batch(self, index: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """items, times (B, max_len) right-padded with 0; length (B,); targets (B, max_len), 0: not trained."""
        index = np.asarray(index, np.int64)
        user = np.searchsorted(self.first, index, side="right") - 1
        nth = index - self.first[user]
        # `end` is the place (within the user) of the window's last target; windows are laid from the end backwards
        end = nth + 1 if self.per_prefix else self.size[user] - 1 - nth * self.max_len
        begin = np.maximum(end - self.max_len, 0)
        length = end - begin
        places, valid = _places(self.start[user] + begin, length, self.max_len)
        targets = np.where(valid, self.item[places + 1], 0)
        if self.per_prefix:
            targets[np.arange(self.max_len) != (length - 1)[:, None]] = 0
        return {
            "items": np.where(valid, self.item[places], 0).astype(np.int64),
            "times": np.where(valid, self.time[places], 0),
            "length": length,
            "targets": targets.astype(np.int64),
        }

    def events(self) -> tuple[np.ndarray, np.ndarray]:
        """User number and item of every training event, for models that count."""
        place = np.repeat(self.start - np.concatenate([[0], np.cumsum(self.size)[:-1]]), self.size) + np.arange(
            self.size.sum()
        )
        return np.repeat(np.arange(len(self.size)), self.size), np.asarray(self.item[place])


class EvalUsers(Part):
    """One target per user with the history before it: the last `max_len` events, and all of it where `asked` for."""

    def __init__(
        self,
        log: dict[str, np.ndarray],
        part: str,
        max_len: int,
        users: list[str],
        asked: Collection[str] = ("history",),
    ):
        """`asked`: "history" among it adds whole histories, as wide as the longest of a batch."""
        self.item, self.time, self.max_len, self.asked = log["item"], log["time"], max_len, asked
        user = log[f"{part}_user"]
        self.begin, self.end, self.target = log["start"][user], log[f"{part}_end"], log[f"{part}_item"]
        self.arrays = {}
        self.ids = np.array([hash_user(users[u]) for u in user])
        self.groups = self.ids

    def batch(self, index: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """items, times (B, max_len), length (B,), target (B,), 0: unknown to training; history (B, longest)."""
        index = np.asarray(index, np.int64)
        begin, end = self.begin[index], self.end[index]
        places, valid = _places(
            np.maximum(begin, end - self.max_len), np.minimum(end - begin, self.max_len), self.max_len
        )
        batch = {
            "items": np.where(valid, self.item[places], 0).astype(np.int64),
            "times": np.where(valid, self.time[places], 0),
            "length": np.minimum(end - begin, self.max_len),
        }
        if "history" in self.asked:  # a batch with one user of a million events takes gigabytes
            past, known = _places(begin, end - begin, int((end - begin).max(initial=0)))
            batch["history"] = np.where(known, self.item[past], 0).astype(np.int64)
        return batch if self.target is None else batch | {"target": self.target[index].astype(np.int64)}


def _places(begin: np.ndarray, length: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions (B, width) of right-padded runs, and which of them are real; padding points at the run's begin."""
    step = np.arange(width)
    valid = step < length[:, None]
    return begin[:, None] + np.where(valid, step, 0), valid


class LogDataset(Dataset):
    """Base of the interaction-log adapters: a subclass says how its file is read and how a sample is written."""

    domain = "recsys"
    kind = "log"
    group = "user/time"
    tiny = {"max_len": 20}
    added_later = {"timestamps": "exact", "cut": None}
    reading = ("duplicates", "timestamps")
    plain = "log"
    split_of_all = "all"
    #: what `read_file` counts times in; a subclass of another unit states it
    time_unit = "s"
    #: the zone of times that state none
    time_zone: str | None = None
    #: what the model's times are counted in, where other files are read for a run
    model_unit: str | None = None

    def __init__(
        self,
        *,
        root: Path | str | None = None,
        subset: str | None = None,
        split: Literal["leave-two-out", "global-time", "all"] = "leave-two-out",
        max_len: int = 50,
        k_core: int = 5,
        windows: Literal["all-positions", "per-prefix"] = "all-positions",
        duplicates: Literal["refuse", "drop"] = "refuse",
        quantiles: tuple[float, float] = QUANTILES,
        timestamps: Literal["exact", "float32"] = "exact",
        cut: int | str | list[int | str] | None = None,
    ):
        """`max_len` events enter the model; `quantiles` place the cuts of the global-time split.

        `cut`: the moment from which on events are tested, or those of validation and test, as whole numbers of the
        log's unit or ISO 8601; with one, training and validation share what is earlier by the ratio of the quantiles.

        `split="all"` trains on everything and tests nothing: the model to serve, after others were compared.

        `timestamps="float32"` is a quirk of RecBole: times are rounded before events are sorted (seconds near 1e9 to
        multiples of 64), which changes orders and targets. Its records stand on boards of their own.
        """
        super().__init__(root=root, subset=subset)
        chosen = ((split, SPLITS, "split"), (windows, WINDOWS, "windows"), (timestamps, TIMESTAMPS, "timestamps"))
        for value, valid, what in chosen:
            if value not in valid:
                raise unknown(what, value, valid, where=self.name)
        if max_len < 1 or k_core < 1:
            raise ZooError(f"{self.name}: max_len {max_len} and k_core {k_core} must be at least 1")
        self.split, self.max_len, self.k_core, self.windows = split, max_len, k_core, windows
        self.duplicates, self.quantiles, self.timestamps = duplicates, tuple(quantiles), timestamps
        # from Python they may come as a tuple or an array
        self.cut = cut.tolist() if isinstance(cut, np.ndarray) else list(cut) if isinstance(cut, tuple) else cut
        if cut is not None and split != "global-time":
            raise ZooError(f"{self.name}: data.cut is of the split global-time, not of {split}; leave one of them out")
        self._log: SplitLog | None = None

    @property
    def split_name(self) -> str:
        """The split, where it is cut if it is not as usual, and that times are rounded where they are."""
        words = [self.split, *map(str, self.moments())]
        if self.split == "global-time" and self.cut is None and self.quantiles != QUANTILES:
            words += map(str, self.quantiles)
        return "-".join(words if self.timestamps == "exact" else [*words, self.timestamps])

    def moments(self) -> tuple[int, ...]:
        """`cut` in whole numbers of the log's unit."""
        given = self.cut if isinstance(self.cut, list) else [] if self.cut is None else [self.cut]
        found = tuple(parse_moment(one, f"{self.name}: data.cut", self.time_unit, self.time_zone) for one in given)
        if len(found) > 2 or list(found) != sorted(set(found)) or (self.cut is not None and not found):
            raise ZooError(f"{self.name}: data.cut={self.cut}: give one moment, or two that rise")
        return found

    @property
    def split_version(self) -> str | None:
        """Which version of the split, where there is more than one."""
        return SPLIT_VERSIONS.get(self.split)

    def read_file(self, file: Path) -> RawLog:
        """The rows of one file of the source's format, in file order, wherever it lies."""
        raise TypeError(f"{type(self).__name__} does not implement read_file()")

    def log_file(self) -> Path:
        """What `read_file` reads: the one file, unless an adapter says otherwise."""
        return self.folder / self.source_files()[0]

    def write_file(self, file: Path, events: Events) -> None:
        """Write the sample's events in the source's format."""
        raise TypeError(f"{type(self).__name__} does not implement write_file()")

    def read_settings(self) -> dict:
        """What `read_file` depends on beyond the files (column names, units); part of the cache key."""
        return {}

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Read (or fetch from the cache), filter, split; parts read from memory-mapped arrays."""
        log, trained = self._load()
        self._log = log
        histories = log.arrays["test_end"] - log.arrays["start"][log.arrays["test_user"]]
        self.counts = log.counts | {"test_histories_that_fill_max_len": int((histories >= self.max_len).sum())}
        assert_no_leak(self.split, log.arrays, log.counts)
        parts: dict[str, Part] = {"train": TrainWindows(log.arrays, self.max_len, self.windows)}
        for name in ("valid", "test"):
            parts[name] = EvalUsers(log.arrays, name, self.max_len, log.users, self.asked)
        tensors = {
            "items": Tensor((self.max_len,), "int64"),
            "times": Tensor((self.max_len,), "int64"),
            "length": Tensor((), "int64"),
        }
        sizes = {"num_items": len(log.items), "max_len": self.max_len}
        return Spec(Inputs("log", tensors, tuple(log.items), trained), Outputs(), sizes), parts

    def assert_no_leakage(self, parts: dict[str, Part]) -> None:
        """Users are in every part by design; `assert_no_leak` compared the positions and times in `build`."""

    def split_hash(self) -> str:
        """SHA-256 over histories, targets, cuts and the rows they came from: equal for equal files alone."""
        self.prepare()
        digest = hashlib.sha256()
        for name, array in sorted(self._log.arrays.items()):
            digest.update(f"{name}:{array.dtype}:{len(array)}:".encode() + np.ascontiguousarray(array).tobytes())
        digest.update("\n".join([*self._log.users, "", *self._log.items]).encode())
        return digest.hexdigest()

    def _load(self) -> tuple[SplitLog, tuple[int, ...]]:
        key = {
            "files": self.manifest(),
            "read": self.read_settings(),
            "split": self.split,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
            "quantiles": self.quantiles,
            "cut": self.moments(),
            "timestamps": self.timestamps,
            "code": CODE_VERSION,
        }
        arrays, facts = self.cached(key, self._split)
        return SplitLog(arrays, facts["users"], facts["items"], facts["counts"]), tuple(facts["trained"])

    def _split(self) -> tuple[dict[str, np.ndarray], dict]:
        raw, repeated = self._read(self.log_file())
        if self.split == "leave-two-out":
            log = leave_two_out(raw, self.k_core)
        elif self.split == self.split_of_all:
            log = everything(raw, self.k_core)
        else:
            log = global_time(raw, self.k_core, self.quantiles, self.moments())
        log.counts |= {f"{part}_targets_in_history": targets_in_history(log.arrays, part) for part in ("valid", "test")}
        log.counts["duplicates_dropped"] = repeated
        facts = {name: getattr(log, name) for name in ("users", "items", "counts")}
        return log.arrays, facts | {"trained": log.trained().tolist()}

    def _read(self, file: Path) -> tuple[RawLog, int]:
        """A log as every setting says, to train on or to predict for, and how many repeated events were dropped."""
        raw = self.read_file(file)
        repeated = find_duplicates(raw)
        if len(repeated) and self.duplicates == "refuse":
            row = repeated[0]
            event = f"user {raw.users[raw.user[row]]}, item {raw.items[raw.item[row]]}, time {raw.time[row]}"
            raise ZooError(
                f"{raw.where(row)}: repeats an earlier event ({event}), as do {len(repeated) - 1} more rows; set "
                "data.duplicates=drop to keep the first of each"
            )
        if len(repeated):
            keep = np.delete(np.arange(len(raw)), repeated)
            raw = RawLog(raw.user[keep], raw.item[keep], raw.time[keep], raw.users, raw.items)
        return RawLog(raw.user, raw.item, self._rounded(raw.time), raw.users, raw.items), len(repeated)

    def _rounded(self, time: np.ndarray) -> np.ndarray:
        """float32 rounds what the model's unit counts; exact times stay in the file's, whose order may be finer."""
        if self.timestamps == "exact":
            return time
        return self._for_model(time).astype(np.float32).astype(np.int64)

    def _for_model(self, time: np.ndarray) -> np.ndarray:
        return in_unit(time, self.time_unit, self.model_unit or self.time_unit)

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """The log of `log_sample` in the source's format."""
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(self.source_files()[0])
        if name.is_absolute() or ".." in name.parts:  # somebody else's recipe may name it; to read it does no harm
            raise ZooError(f"{self.key}: data.file={name} lies outside of the sample's folder; leave it out")
        self.write_file(folder / name, generate(seed))

    def write_evaluated(self, folder: Path) -> Path:
        """The log of the sample (seed 0), cut off before each user's test target."""
        self.prepare()
        file, a = self.source_files()[0], self._log.arrays
        raw = self.read_file(self.log_file())
        order = np.lexsort((np.arange(len(raw)), self._rounded(raw.time), raw.user))
        place = np.argsort(order)
        last = np.full(len(raw.users), -1)  # where each user's history ends
        end = a["row"][a["test_end"] - 1]
        last[raw.user[end]] = place[end]
        keep = place <= last[raw.user]
        folder.mkdir(parents=True, exist_ok=True)
        self.write_file(folder / file, Events(*(column[keep] for column in generate(0))))
        return folder / file

    def read_for(self, trained: Dataset, changed: Collection[str] = ()) -> None:
        """Any log serves: window and unit are those of training, and so is what becomes of events but for `changed`."""
        if not isinstance(trained, LogDataset):
            super().read_for(trained, changed)
        self.max_len, self.model_unit = trained.max_len, trained.time_unit
        for name in LogDataset.reading:
            if name not in changed:
                setattr(self, name, getattr(trained, name))

    def inference(self, source: Path, prep: Path) -> Part:
        """Histories of all users of a log file, read as in training; unknown items are left out and counted.

        Users with no known item are not served: `unserved` of the part has them with the reason.
        """
        spec = Spec.load(prep)
        raw, repeated = self._read(source)
        index = {name: i + 1 for i, name in enumerate(spec.inputs.vocabulary)}
        code = np.array([index.get(name, 0) for name in raw.items], np.int32)[raw.item]
        known = np.flatnonzero(code)
        order = known[np.lexsort((raw.time[known], raw.user[known]))]
        user, start = np.unique(raw.user[order], return_index=True)
        start = np.append(start, len(order)).astype(np.int64)
        arrays = {
            "item": code[order],
            "time": self._for_model(raw.time[order]) if self.timestamps == "exact" else raw.time[order],
            "start": start,
            "predict_user": np.arange(len(user)),
            "predict_end": start[1:],
            "predict_item": np.zeros(len(user), np.int32),
        }
        part = EvalUsers(arrays, "predict", self.max_len, [raw.users[u] for u in user], self.asked)
        part.ids = np.array([raw.users[u] for u in user], dtype=str)
        part.target = None
        unknown_users = np.setdiff1d(np.arange(len(raw.users)), user)
        part.unserved = {raw.users[u]: "no item of this user is known to the model" for u in unknown_users}
        self.counts = {
            "events": len(raw),
            "events_of_unknown_items": int(len(raw) - len(known)),
            "users_of_unknown_items_alone": len(part.unserved),
            "duplicates_dropped": repeated,
        }
        return part
