"""Logs in every format and archives, changed in hundreds of ways: a result or one line, no other error, no hang."""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from _mutate import COUNT, limits, mutants, survives
from statezoo.datasets.images.cifar10_jpg import CIFAR10JPG, NAME
from statezoo.datasets.recsys.log import Log
from statezoo.datasets.recsys.recbole import RecBole
from statezoo.zoo.data.download import extract
from statezoo.zoo.data.log_reader import read_log


@pytest.fixture(autouse=True)
def _limits():
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


EVENTS = 60
LOG = {
    "user": [f"u{i % 7}" for i in range(EVENTS)],
    "item": [f"{i * i % 11:04d}" for i in range(EVENTS)],
    "rating": [i % 5 for i in range(EVENTS)],
    "time": [1_500_000_000 + 3600 * i for i in range(EVENTS)],
}


def _text(separator, header):
    rows = zip(*LOG.values(), strict=True)
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([separator.join(LOG)] * header + lines + [""]).encode()


def _parquet(**options):
    packed = io.BytesIO()
    frame = pd.DataFrame(LOG)
    if options.pop("stamps", False):
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
    frame.to_parquet(packed, index=False, **options)
    return packed.getvalue()


BY_NAME = {"user": "user", "item": "item", "time": "time"}
BY_PLACE = {"user": 0, "item": 1, "time": 3}
LOGS = {
    "log.csv": (_text(",", True), BY_NAME, {}),
    "log.inter": (_text("\t", True), BY_NAME, {"separator": "\t"}),
    "log.dat": (_text("::", False), BY_PLACE, {"separator": "::", "header": False}),
    "plain.parquet": (_parquet(compression=None), BY_NAME, {}),
    "snappy.parquet": (_parquet(), BY_NAME, {}),
    "stamps.parquet": (_parquet(compression="zstd", stamps=True), BY_NAME, {}),
}


@pytest.mark.parametrize("name", LOGS)
def test_logs(tmp_path, name):
    data, columns, options = LOGS[name]
    path, refused, count = tmp_path / name, 0, max(COUNT // 2, 20)
    for mutant in mutants(data, name, count):
        path.write_bytes(mutant)
        refused += not survives(lambda: read_log(path, columns, **options))
    path.write_bytes(data)
    assert survives(lambda: read_log(path, columns, **options)) and refused > count // 20


@pytest.mark.parametrize("adapter", [Log, RecBole])
def test_whole_adapters_of_logs(tmp_path, adapter):
    """Reading, filtering and splitting what was read; fewer, for it takes longer."""
    folder = adapter.sample(folder=tmp_path / "sample").folder
    (file,) = (path for path in folder.iterdir() if path.is_file())
    good = b"\n".join(file.read_bytes().split(b"\n")[:600])
    for mutant in mutants(good, f"whole-{file.name}", max(COUNT // 20, 10)):
        file.write_bytes(mutant)
        survives(lambda: adapter(root=folder, file=file.name, duplicates="drop").prepare())


# archives -----------------------------------------------------------------------------------------------------------


def _zip(method):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in (("a/b.csv", b"user,item\n1,2\n" * 20), ("c", b""), ("d/", b""), ("e", bytes(range(256)))):
            archive.writestr(name, content)
    return packed.getvalue()


def _tar(format):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format) as archive:
        for name, content in (("a/b.csv", b"user,item\n1,2\n" * 20), ("c", b""), ("é" * 60, bytes(range(256)))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


ARCHIVES = {
    "stored.zip": _zip(zipfile.ZIP_STORED),
    "deflated.zip": _zip(zipfile.ZIP_DEFLATED),
    "bzip.zip": _zip(zipfile.ZIP_BZIP2),
    "lzma.zip": _zip(zipfile.ZIP_LZMA),
    "pax.tar": _tar(tarfile.PAX_FORMAT),
    "gnu.tar": _tar(tarfile.GNU_FORMAT),
    "a.tar.gz": gzip.compress(_tar(tarfile.PAX_FORMAT)),
    "a.tar.bz2": bz2.compress(_tar(tarfile.GNU_FORMAT)),
    "a.tar.xz": lzma.compress(_tar(tarfile.GNU_FORMAT)),
    "a.csv.gz": gzip.compress(b"user,item\n1,2\n" * 50),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path, name):
    path, out, refused, count = tmp_path / "in" / name, tmp_path / "out", 0, max(COUNT // 4, 20)
    path.parent.mkdir()
    for mutant in mutants(ARCHIVES[name], name, count):
        path.write_bytes(mutant)
        refused += not survives(lambda: extract(path, out))
        assert sorted(p.name for p in tmp_path.iterdir()) in (["in"], ["in", "out"]), "nothing beside the folder"
        shutil.rmtree(out, ignore_errors=True)
    path.write_bytes(ARCHIVES[name])
    assert survives(lambda: extract(path, out)) and refused > count // 4


def test_zip_of_images(tmp_path):
    folder = CIFAR10JPG.sample(folder=tmp_path / "sample").folder
    small, path = io.BytesIO(), folder / NAME
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(small, "w") as made:
        for name in archive.namelist()[::100]:
            made.writestr(name, archive.read(name))
    adapter = CIFAR10JPG(root=folder)
    for mutant in mutants(small.getvalue(), "images", max(COUNT // 2, 20)):
        path.write_bytes(mutant)
        survives(adapter._decode)
    path.write_bytes(small.getvalue())
    assert survives(adapter._decode)


def test_the_samples_hold_what_the_tests_say():
    frame = pd.read_parquet(io.BytesIO(LOGS["stamps.parquet"][0]))
    assert len(frame) == EVENTS and frame["time"].dt.tz is not None
    assert np.array_equal(frame["item"], LOG["item"])
