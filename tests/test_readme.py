"""The README's commands run, and its tables are what the command prints."""

import re
import shlex
from pathlib import Path

import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.cli import main
from statezoo.zoo.registry import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("zoo ")]
MAKE = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("make ")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder to work in, with a data root whose files are the adapters' samples in the sources' own formats."""
    folder = tmp_path_factory.mktemp("readme")
    sources = {"ml-100k": folder / "data/recsys/ml-100k", "digits": folder / "data/images/digits"}
    for name, place in sources.items():
        create_dataset(name).write_sample(place, 0)
    create_dataset("log", file="sales.csv", user="customer", item="sku", time="sold_at").write_sample(
        folder / "FOLDER", 0
    )
    create_dataset("log", file="new.csv").write_sample(folder, 1)
    create_dataset("cloud-folder").write_sample(folder / "CLOUDS", 0)
    return folder


def test_readme_names_the_two_commands():
    assert MAKE == ["make train", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target.split()[1]}:", makefile, re.M) for target in MAKE)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_every_command_of_the_readme_runs(world, monkeypatch, capsys):
    """In order and in one folder, as a reader would; samples stand in for real logs, training is cut to 2 steps."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("STATEZOO_DATA", str(world / "data"))
    monkeypatch.setenv("STATEZOO_RUNS", str(world / "runs"))
    assert len(COMMANDS) >= 14
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if "RUN" in words:
            make_run()
            words = [word.replace("new.csv", "FOLDER/sales.csv") for word in words]
        if words[0] == "train" and "--resume" in words:
            make_unfinished(Path("runs"))
        elif words[0] == "train":
            words += ["train.max_steps=2", "train.logger=null"]
            words += ["data.points=64"] if "cloud-folder" in command else []
        if words[0] == "bench":
            words += ["--steps", "2"]
        code = main(words)
        output = capsys.readouterr()
        assert code == 0, f"{command}: {output.err}"
        assert output.out.strip(), command


def make_run():
    """A run of the log adapter, so that `predict` reads CSV."""
    if not Path("RUN").exists():
        columns = ["data.user=customer", "data.item=sku", "data.time=sold_at"]
        source = ["data.root=FOLDER", "data.file=sales.csv", *columns]
        assert main(["train", "sasrec/log", *source, "train.max_steps=2", "--folder", "RUN"]) == 0


def make_unfinished(runs):
    """Take the record of the newest run of sasrec/ml-100k away, as if it had been killed at the end."""
    run = sorted((runs / "sasrec/ml-100k").glob("*-seed0"))[-1]
    (run / "record.json").unlink()


def test_python_example_runs(world, monkeypatch):
    monkeypatch.setenv("STATEZOO_DATA", str(world / "data"))
    monkeypatch.chdir(world)
    make_run()
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(code, names)
    assert names["model"].config["dim"] == 128
    names["data"].setup()
    assert names["table"].groupby("id").size().to_dict() == {"ann": 5, "ben": 5}
    assert names["log"].manifest().keys() == {"DataFrame"}
    assert next(iter(names["data"].train_dataloader()))["items"].shape[1] == 50


def test_boards_are_what_the_command_prints(capsys):
    assert main(["leaderboard", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    shown = TEXT.split("<!-- boards:")[1].split("-->\n", 1)[1].split("<!-- end of boards")[0].strip()
    assert shown == printed


def test_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
