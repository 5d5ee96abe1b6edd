"""Settings that no model or training can have are refused in one line, where a recipe is read and where one builds."""

import pytest
import statezoo
from statezoo.zoo.data.spec import Inputs, Spec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers import create_mixer
from statezoo.zoo.recipe import load, recipe_files
from statezoo.zoo.registry import find

REFUSED = {
    "sasrec/ml-100k": {
        "task.topk=[]": "give at least 1", "task.topk=[0, 5]": "give at least 1", "task.loss_chunk=0": "at least 1",
        "task.loss_chunk=-3": "give at least 1", "model.dim=0": "give at least 1", "model.layers=0": "give at least 1",
        "model.heads=-1": "give at least 1", "model.hidden=0": "give at least 1",
        "model.dropout=-0.1": "give a share from 0 to below 1", "model.dropout=1.5": "give a share from 0 to below 1",
        "model.attention_dropout=1": "give a share from 0 to below 1", "model.norm_eps=0": "give more than 0",
        "model.init_std=-1": "give 0 or more", "train.batch_size=0": "give at least 1", "train.epochs=0": "at least 1",
        "train.epochs=-1": "give at least 1", "train.max_steps=-1": "give 0 or more", "train.lr=-1": "give 0 or more",
        "train.accumulate=0": "give at least 1", "train.warmup_steps=-1": "give 0 or more",
    },
    "tim4rec/ml-100k": {
        "model.d_state=0": "give at least 1", "model.d_conv=0": "give at least 1", "model.expand=-2": "give at least 1",
        "model.head_dim=0": "give at least 1", "model.time_dropout=2": "give a share from 0 to below 1",
    },
    "mamba4rec/ml-100k": {"model.hidden=0": "give at least 1"},
    "bert4rec/ml-100k": {"model.masked=0": "give a share above 0, up to 1"},
    "mamba_lm/characters": {
        "model.layers=-1": "at least 1", "model.vocab_multiple=0": "give at least 1", "model.hidden=-1": "at least 1",
    },
    "item-knn/ml-100k": {"model.neighbours=0": "give at least 1", "model.shrink=-1": "give 0 or more"},
    "dgcnn/medpoints": {"model.widths=[]": "give at least 1", "model.k=0": "give at least 1"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "change", "remedy"),
    [(r, change, told) for r, all_of in REFUSED.items() for change, told in all_of.items()],
)
def test_a_recipe_with_a_number_that_means_nothing_is_refused(recipe, change, remedy):
    with pytest.raises(ZooError) as told:
        load(recipe, [change])
    key, _, value = change.partition("=")
    assert f"{key}={value}" in str(told.value).replace("-1.0", "-1").replace("=2.0", "=2").replace(
        "=1.0", "=1"
    ).replace("=0.0", "=0") and remedy in str(told.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: statezoo.create_model("sasrec", num_items=10, dim=0),
        lambda: statezoo.create_model("sasrec", num_items=10, layers=-1),
        lambda: statezoo.create_model("gru4rec", num_items=10, dropout=1.5),
        lambda: statezoo.create_model("mamba4rec", num_items=10, mixer={"name": "s6", "d_state": 0}),
        lambda: statezoo.create_model("mamba4rec", num_items=10, mixer={"name": "attention", "heads": 0}),
        lambda: statezoo.create_model("point_ssm", num_outputs=2, encoder={"k": 0}),
        lambda: create_mixer("ssd", 0),
        lambda: create_mixer({"name": "ssd", "expand": 0}, 8),
    ],
)
def test_building_with_a_number_that_means_nothing_is_refused(make):
    with pytest.raises(ZooError, match=r"\w+=-?[\d.]+: give "):
        make()


@pytest.mark.parametrize(("name", "value"), [("topk", ()), ("topk", (0,)), ("loss_chunk", 0), ("loss_chunk", -3)])
def test_the_task_itself_refuses_them(name, value):
    spec = Spec(Inputs("log", {}, tuple("abcdefgh")), sizes={"num_items": 8})
    with pytest.raises(ZooError, match=f"task.{name}=.*: give at least 1"):
        find("task", "next_item").load()(statezoo.create_model("popularity", num_items=8), spec, **{name: value})


def test_every_recipe_and_what_is_so_by_default_pass():
    assert all(load(name).id == name for name in recipe_files())
    assert load("mamba_lm/characters", ["model.hidden=0"]).model["hidden"] == 0
    sasrec = load("sasrec/ml-100k", ["model.attention_dropout=null", "task.loss_chunk=null", "model.dropout=0"])
    assert sasrec.model["attention_dropout"] is None and sasrec.task["loss_chunk"] is None


def test_what_arguments_of_somebody_elses_model_mean_is_not_guessed(tmp_path):
    (tmp_path / "net.py").write_text(
        "from statezoo.zoo.backbones.baselines.mlp import MLP\n\n\n"
        "class Net(MLP):\n"
        "    configs = {'net': {}}\n\n"
        "    def __init__(self, *, k: int = 3, **more):\n"
        "        super().__init__(**more)\n"
        "        self.k = k\n"
    )
    net = str(tmp_path / "net.py")
    assert load(f"{net}/digits", ["model.k=0"]).model["k"] == 0
    with pytest.raises(ZooError, match="hidden=0: give at least 1"):
        load(f"{net}/digits", ["model.hidden=0"])


def test_keywords_that_a_constructor_hands_on_are_saved_by_their_own_names(tmp_path):
    """So that a model which takes `**more` is made again from its configuration."""
    (tmp_path / "net.py").write_text(
        "from statezoo.zoo.backbones.baselines.mlp import MLP\n\n\n"
        "class Net(MLP):\n"
        "    configs = {'net': {}}\n\n"
        "    def __init__(self, *, wide: int = 3, **more):\n"
        "        super().__init__(**more)\n"
    )
    made = statezoo.create_model(str(tmp_path / "net.py"), in_channels=1, height=2, width=2, num_outputs=3, hidden=5)
    assert made.config["wide"] == 3 and made.config["hidden"] == 5 and "more" not in made.config
    made.save(tmp_path / "run", str(tmp_path / "net.py"))
    assert statezoo.load(tmp_path / "run", trust_code=True).config == made.config
