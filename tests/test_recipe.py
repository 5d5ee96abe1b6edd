"""Every recipe resolves, validates, survives saving and says what it costs and gives; what is wrong is one line."""

import re
from statistics import mean

import pytest
import yaml
from statezoo.leaderboards import board
from statezoo.leaderboards.schema import AS_BEFORE
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_json
from statezoo.zoo.recipe import added_later, load, recipe_files
from statezoo.zoo.registry import entries, find
from statezoo.zoo.train.config import OPERATIONAL, TrainConfig

FILES = recipe_files()
HEADER = re.compile(
    r"# zoo train (?P<id>\S+)\n"
    r"# (?P<seconds>\d[\d.]*) s on (?P<device>.+) \(per run, mean of (?P<seeds>\d+) seeds\)\n"
    r"# (?P<metric>\S+) (?P<value>\d\.\d{4}) on (?P<split>\S+|the test part) \(mean of (?P=seeds) seeds\)\n"
)


RECORDS = [found.record for found in board.find_records()]
BOARDS = board.boards(board.find_records())


def headers(file):
    """The blocks of three lines that a recipe opens with, one for each split; other comments there are an error."""
    text = file.read_text(encoding="utf-8")
    opening = re.match(r"(#.*\n)*", text).group()
    blocks = list(HEADER.finditer(opening))
    assert "".join(block.group() for block in blocks) == opening, f"{file}: does not open with command, time and score"
    return blocks


def pending(name):
    """A recipe that has not been run to its end says so in place of a time and a score."""
    return FILES[name].read_text().startswith(f"# zoo train {name}\n# not run yet: no score is claimed\n")


def error_of(source, *overrides, **options):
    """The one line that loading fails with."""
    with pytest.raises(ZooError) as caught:
        load(source, overrides, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# every file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [False, True], ids=["full", "sample"])
@pytest.mark.parametrize("name", FILES)
def test_recipe_resolves_and_survives_saving(name, sample, tmp_path):
    recipe = load(name, sample=sample)
    assert (recipe.id, recipe.note, recipe.seed) == (name, "", 0)
    assert name.startswith(f"{recipe.model['name']}/{recipe.data['name']}")
    recipe.save(tmp_path / "recipe.yaml")
    again = load(str(tmp_path / "recipe.yaml"))
    assert again == recipe and again.hash() == recipe.hash()


@pytest.mark.parametrize("name", FILES)
def test_recipe_by_path_is_the_recipe_by_id(name):
    assert load(str(FILES[name])).hash() == load(name).hash()


@pytest.mark.parametrize("name", FILES)
def test_recipe_opens_with_command_time_hardware_and_score(name):
    if pending(name):
        assert not [record for record in RECORDS if record.recipe.id.partition("@")[0] == name]
        return
    blocks = headers(FILES[name])
    assert blocks and blocks[0]["id"] == name
    for block in blocks:
        recipe = load(block["id"])
        # its own file serves, and the score is of the split that the command makes
        assert recipe.note in ("", f"recipe {name} with the settings of the id")
        assert folded(block) or recipe.data.get("split", block["split"]) == block["split"]


@pytest.mark.parametrize("name", FILES)
def test_header_says_what_the_records_say(name):
    """Where results of a recipe are committed, its header is their mean, and the settings are still those."""
    if pending(name):
        pytest.skip("not run yet, and says so")
    compared = [compare_with_records(block) for block in headers(FILES[name])]
    if not any(compared):
        pytest.skip("no record of this recipe on the stated device is committed")
    assert all(compared), "records of one split only"


def folded(block):
    """Whether the score is of several folds, pooled; the command trains one of them."""
    return re.fullmatch(r"fold\d+-\d+", block["split"])


def compare_with_records(block):
    """False where there is no record to compare with."""
    if folded(block):
        return compare_with_board(block)
    ids = (block["id"], f"{block['id']}@{block['split']}")
    mine = [r for r in RECORDS if r.recipe.id in ids and r.environment.device == block["device"]]
    mine = [r for r in mine if (r.benchmark.split or "the test part") == block["split"]]  # others are variants
    if not mine:
        return False
    assert same_settings(block, mine)
    assert {r.primary for r in mine} == {block["metric"]}
    assert len({r.seed for r in mine}) == len(mine) == int(block["seeds"])
    assert block["value"] == f"{mean(r.metrics[r.primary].value for r in mine):.4f}"
    assert float(block["seconds"]) == pytest.approx(mean(r.cost.train_seconds for r in mine), rel=0.05)
    return True


def compare_with_board(block):
    """As `compare_with_records`: the value is that of pooled rows, which boards have."""
    rows = [
        (one.primary, row)
        for one in BOARDS
        if one.name.endswith(f"@{block['split']}")
        for row in one.rows
        if row.recipe == block["id"] and devices(row) == block["device"]
    ]
    if not rows:
        return False
    # the board may hold the same recipe with other settings
    rows = [(primary, row) for primary, row in rows if same_settings(block, [one.record for one in row.records])]
    ((primary, row),) = rows
    mine = [one.record for one in row.records]
    assert primary == block["metric"] and len(row.seeds) == int(block["seeds"])
    assert block["value"] == f"{row.value[primary]:.4f}"
    assert float(block["seconds"]) == pytest.approx(mean(r.cost.train_seconds for r in mine), rel=0.05)
    return True


def devices(row):
    """Seeds may have been trained on several."""
    return " and ".join(sorted({one.record.environment.device for one in row.records}))


def same_settings(block, records):
    settings = load(block["id"]).resolved()
    other = {"split"} if folded(block) else set()
    return all(
        settings[section][key] == value  # a setting that came later has its default
        for record in records
        for section, values in record.recipe.scientific.items()
        for key, value in values.items()
        if key not in other
    )


# ids ----------------------------------------------------------------------------------------------------------------


def test_id_with_task_and_split():
    recipe = load("sasrec/ml-100k-next_item@global-time")
    assert recipe.id == "sasrec/ml-100k-next_item@global-time"
    assert (recipe.model["name"], recipe.data["name"], recipe.task["name"]) == ("sasrec", "ml-100k", "next_item")
    assert recipe.note == "recipe sasrec/ml-100k with the settings of the id"
    plain, split = load("sasrec/ml-100k"), load("sasrec/ml-100k@global-time")
    assert plain.data["split"] == "leave-two-out"
    assert split.scientific() == plain.scientific() | {"data": plain.scientific()["data"] | {"split": "global-time"}}
    assert recipe.hash() == split.hash() != plain.hash()


def test_pair_without_a_file_runs_on_defaults_and_says_so():
    recipe = load("sasrec/ml-1m")
    assert recipe.note == "no recipe for sasrec/ml-1m: defaults"
    assert (recipe.task["name"], recipe.train["epochs"]) == ("next_item", 50)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sasrc/ml-100k", "unknown model 'sasrc'; did you mean 'sasrec'?"),
        ("sasrec/ml100k", "unknown dataset 'ml100k'; did you mean 'ml-100k'?"),
        ("sasrec", "unknown recipe 'sasrec'; did you mean 'sasrec/"),
        ("sasrec/ml-100k-classification", "unknown task 'classification' in data set ml-100k; valid: next_item"),
        ("sasrec/ml-100k@global", "unknown split 'global' in recipe sasrec/ml-100k@global; did you mean 'global-t"),
        ("mlp/digits@global-time", "unknown key 'data.split' in recipe mlp/digits@global-time"),
        ("nowhere/recipe.yaml", "no file nowhere/recipe.yaml; give a recipe id"),
    ],
)
def test_wrong_ids(source, message):
    assert message in error_of(source)


# overrides ----------------------------------------------------------------------------------------------------------


def test_overrides_apply_in_order_and_after_the_sample_preset():
    recipe = load("sasrec/ml-100k", ["train.lr=1e-2", "train.lr=3e-4", "seed=7", "model.attention_dropout=0.1"])
    assert (recipe.train["lr"], recipe.seed, recipe.model["attention_dropout"]) == (3e-4, 7, 0.1)
    assert load("sasrec/ml-100k", ["train={lr: 0.5}", "train.epochs=3"]).train["epochs"] == 3
    assert load("sasrec/ml-100k", ["train.epochs=3", "train={lr: 0.5}"]).train["epochs"] == 50
    preset = load("sasrec/ml-100k", sample=True).model["dim"]
    assert preset != 24 and load("sasrec/ml-100k", ["model.dim=24"], sample=True).model["dim"] == 24


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "unknown key 'train.lrr' in recipe sasrec/ml-100k; did you mean 'train.lr'?"),
        ("model.dims=64", "did you mean 'model.dim'?"),
        ("data.maxlen=9", "did you mean 'data.max_len'?"),
        ("trian.lr=1", "unknown key 'trian' in recipe sasrec/ml-100k; did you mean 'train'?"),
        ("model.num_items=9", "unknown key 'model.num_items'"),  # the data decide it
        ("train.lr=abc", "train.lr: Expected a <class 'float'>. Got value: abc"),
        ("train.epochs=1.5", "train.epochs: Expected a <class 'int'>. Got value: 1.5"),
        ("train.epochs=true", "train.epochs: Expected a <class 'int'>. Got value: True"),
        ("train.schedule=cosin", "train.schedule: expected constant, linear or cosine, got 'cosin'; did you mean 'c"),
        ("train.lr=", "train.lr may not be null"),
        ("data.max_len=null", "data.max_len may not be null"),
        ("train.lr.x=1", "override train.lr.x: 'lr' holds a value, not keys"),
        ("train=3", "train is 3, which holds no keys; write train.key=value"),
        ("model.name=", "model.name is missing; `zoo list models`"),
        ("train.lr", "'train.lr' is no override; write key.sub=value"),
        ("=3", "'=3' is no override"),
        ("train.lr=[1", "override 'train.lr=[1': the value is not valid YAML"),
        (
            "data.cut=" + "9" * 23,
            f"override 'data.cut={'9' * 23}': the value is not valid YAML (the number {'9' * 23} ",
        ),
        ("seed=-1", "seed -1 must be a whole number from 0"),
        ("seed=true", "seed True must be a whole number from 0"),
        ("seed=1.5", "seed 1.5 must be a whole number from 0"),
        ("seed=", "seed None must be a whole number from 0"),
    ],
)
def test_wrong_overrides(override, message):
    assert message in error_of("sasrec/ml-100k", override)


def test_null_is_a_value_where_the_type_has_it():
    recipe = load("sasrec/ml-100k", ["train.patience=null", "train.logger=null", "data.root="])
    assert recipe.train["patience"] is recipe.train["logger"] is recipe.data["root"] is None


# the hash -----------------------------------------------------------------------------------------------------------

MACHINE = {
    "data.root": "/elsewhere",
    "seed": 5,
    "train.workers": 4,
    "train.threads": 2,
    "train.accelerator": "cpu",
    "train.strategy": "ddp",
    "train.logger": "CSVLogger",
    "train.log_every": 3,
    "train.save_every": 100,
}


def test_hash_is_of_what_decides_the_result():
    base = load("sasrec/ml-100k")
    assert {f"train.{key}" for key in OPERATIONAL} == {key for key in MACHINE if key.startswith("train.")}
    for key, value in MACHINE.items():
        assert load("sasrec/ml-100k", [f"{key}={value}"]).hash() == base.hash(), key
    changes = ["train.lr=2e-3", "train.batch_size=31", "model.dim=32", "data.max_len=49", "task.mask_history=true",
               "train.eval_batch_size=7", "train.compile=true", "train.devices=2", "train.num_nodes=2"]  # fmt: skip
    assert len({base.hash(), *(load("sasrec/ml-100k", [change]).hash() for change in changes)}) == len(changes) + 1
    assert load("sasrec/ml-100k", ["train.lr=0.001", "model.layers=2"]).hash() == base.hash(), "as the recipe has it"


# files --------------------------------------------------------------------------------------------------------------

GOOD = {"model": {"name": "sasrec"}, "data": {"name": "ml-100k"}, "task": {"name": "next_item"}}


def test_own_file_is_completed_with_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"seed": 3, "train": {"lr": 0.5}}))
    recipe = load(str(file))
    assert (recipe.id, recipe.seed, recipe.train["lr"], recipe.train["epochs"]) == ("mine", 3, 0.5, 50)
    assert load(str(file), ["train.lr=0.001"]).scientific() == load("sasrec/ml-1m", ["data.name=ml-100k"]).scientific()


@pytest.mark.parametrize("sample", [False, True], ids=["full", "sample"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  name: sasrec\n bad: [", r"bad\.yaml, line 3: not valid YAML"),
        ("model: {name: sasrec}\ndata: [1\ntask: x\n", r"bad\.yaml, line 3: not valid YAML"),
        ("- model\n", r"bad\.yaml: a recipe is a mapping with model, data, task, train"),
        ("", r"bad\.yaml: a recipe is a mapping"),
        (yaml.safe_dump(GOOD | {"train": 3}), "train is 3, which holds no keys"),
        (yaml.safe_dump(GOOD | {"model": ["sasrec"]}), "model is .*, which holds no keys"),
        (yaml.safe_dump(GOOD | {"task": {}}), "task.name is missing; `zoo list tasks`"),
        (yaml.safe_dump({key: GOOD[key] for key in ("model", "task")}), "data.name is missing; `zoo list datasets`"),
        (yaml.safe_dump(GOOD | {"optimizer": {}}), "unknown key 'optimizer' in recipe"),
        (yaml.safe_dump(GOOD | {"task": {"name": "next_items"}}), "did you mean 'next_item'"),
        (yaml.safe_dump(GOOD | {"task": {"name": "classification"}}), "unknown task .* in data set ml-100k"),
    ],
)
def test_wrong_files(text, message, sample, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    assert re.search(message, error_of(str(tmp_path / "bad.yaml"), sample=sample))


def test_weights_that_training_starts_from_enter_the_hash_by_their_content(tmp_path):
    hashes = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        hashes.append(load("sasrec/ml-100k", [f"train.init_from={tmp_path / name}.safetensors"]).hash())
    assert hashes[0] == hashes[1] != hashes[2] and load("sasrec/ml-100k").hash() not in hashes
    with pytest.raises(ZooError, match="no weights there"):
        load("sasrec/ml-100k", ["train.init_from=nowhere"]).hash()


def test_a_key_at_the_value_of_before_it_leaves_the_hash_alone():
    base = load("sasrec/ml-100k")
    assert not set(base.scientific()["train"]) & set(TrainConfig.added_later)
    assert "timestamps" not in base.scientific()["data"]
    for setting in ("train.eval_batch_size=null", "train.lr_end=null", "data.timestamps=exact", "train.compile=false"):
        assert load("sasrec/ml-100k", [setting]).hash() == base.hash(), setting
    assert load("sasrec/ml-100k", ["data.timestamps=float32"]).hash() != base.hash()


def _without_later(recipe, scientific):
    """The recorded settings in today's form: some records were made while a later key still stood in the hash."""
    classes = {"train": TrainConfig}
    for section, kind in (("model", "model"), ("data", "dataset"), ("task", "task")):
        classes[section] = find(kind, getattr(recipe, section)["name"]).load()
    later = {section: added_later(cls) for section, cls in classes.items()}
    return {
        section: {key: value for key, value in values.items() if later[section].get(key, ...) != value}
        for section, values in scientific.items()
    }


def test_committed_records_keep_the_hash_of_their_recipe():
    """Loaded today, a recipe that has not changed has the hash that its records state."""
    recipes, same, changed = {}, 0, set()
    for record in RECORDS:
        assert hash_json(record.recipe.scientific) == record.recipe.sha256
        name = record.recipe.id
        if name not in recipes:
            recipes[name] = load(name)
        recipe, stated = recipes[name], _without_later(recipes[name], record.recipe.scientific)
        if stated == recipe.scientific():
            assert hash_json(stated) == recipe.hash()
            # all but those that state a later key at its value of before
            assert recipe.hash() == record.recipe.sha256 or record.recipe.scientific != stated
            facts = record.recipe.model_copy(update={"scientific": recipe.scientific(), "sha256": recipe.hash()})
            again = record.model_copy(update={"recipe": facts})
            assert again.entry() == record.entry(), f"{name}: another seed of it would have a row of its own"
            same += 1
        else:  # an override, or a recipe file that has changed since: it differs in a value, never by a key of today
            changed.add(name)
            for section, values in recipe.scientific().items():
                assert set(values) <= set(stated[section]), f"{name}: {section} has a key that no record knows of"
    assert same > 0.85 * len(RECORDS), sorted(changed)


def test_boards_know_every_setting_that_came_later():
    sections = {"model": "model", "data": "dataset", "task": "task"}
    classes = [(section, entry.load()) for section, kind in sections.items() for entry in entries(kind).values()]
    classes.append(("train", TrainConfig))
    later = {(section, name): value for section, cls in classes for name, value in added_later(cls).items()}
    assert len(later) > 5
    for (section, name), value in later.items():
        assert value in (None, False) or AS_BEFORE[f"{section}.{name}"] == value


# subsets ------------------------------------------------------------------------------------------------------------


def test_subset_of_a_name_enters_the_recipe_and_cannot_be_contradicted(tmp_path):
    file = tmp_path / "sets.py"
    file.write_text(
        "from statezoo.zoo.data.base import Dataset\n\n\n"
        'class Sets(Dataset):\n    tasks = ("classification",)\n    subsets = ("small", "large")\n'
    )
    recipe = load(f"mlp/{file}:large")
    assert (recipe.data["name"], recipe.data["subset"]) == (f"{file}:large", "large")
    assert "data.subset=small contradicts" in error_of(f"mlp/{file}:large", "data.subset=small")
    assert "did you mean 'sets:large'" in error_of(f"mlp/{file}:larg")


def test_a_number_that_names_a_choice_is_that_choice():
    assert load("mlp/digits", ["train.precision=32"]).train["precision"] == "32"


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("sasrec/log", "data.time_zone=3", "data.time_zone: expected text or null, got 3; give a value"),
        ("sasrec/log", "data.time_unit=m", "data.time_unit: expected s, ms, us or ns, got 'm'; did you mean 'ms'?"),
        ("sasrec/log", "data.time_unit=3", "data.time_unit: expected s, ms, us or ns, got 3; give a value"),
        ("sasrec/ml-100k", "train.max_steps=x", "train.max_steps: expected a whole number or null, got 'x'; give a va"),
        ("sasrec/ml-100k", "train.clip=[1]", "train.clip: expected a number or null, got [1]; give a"),
        ("sasrec/ml-100k", "train.deterministic=maybe", "train.deterministic: expected true, false or null, got 'ma"),
        ("sasrec/ml-100k", "data.cut={a: 1}", "data.cut: expected a whole number, text, a list (each a whole "),
        ("sasrec/ml-100k", "data.timestamps=exat", "data.timestamps: expected exact or float32, got 'exat'; did you"),
        ("point_ssm/medpoints", "model.encoder=3", "model.encoder: expected a mapping or null, got 3; give a value"),
    ],
)
def test_a_value_of_another_type_is_told_in_words(recipe, change, message):
    with pytest.raises(ZooError) as told:
        load(recipe, [change])
    assert str(told.value).startswith(f"recipe {recipe}: {message}")
    for machinery in ("typing", "Union", "<class", "Giv;"):
        assert machinery not in str(told.value)
