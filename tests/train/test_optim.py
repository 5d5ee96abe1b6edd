"""Optimisers of every name that a recipe may give go on from a saved state as if never stopped."""

import pytest
import torch
from statezoo.zoo.errors import ZooError
from statezoo.zoo.stored import read_state, restore
from statezoo.zoo.train.config import TrainConfig
from statezoo.zoo.train.optim import make_optimizer
from timm.optim import list_optimizers
from torch import nn

#: those of other packages, and one that training refuses
ELSEWHERE = ("bnb", "fused", "adahessian")
NAMES = [name for name in list_optimizers() if not name.startswith(ELSEWHERE)]


def begin(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5))
    made = make_optimizer(model, TrainConfig(optimizer=name, warmup_steps=2), 10)
    return model, made["optimizer"], made["lr_scheduler"]["scheduler"]


def train(model, optimizer, schedule, seed, steps=3):
    torch.manual_seed(seed)  # some draw, as Kron
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 4)).square().mean().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.filterwarnings("ignore:It is highly recommended")
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lookahead_lamb", *NAMES])
def test_a_saved_state_goes_on_the_same(name, tmp_path):
    model, optimizer, schedule = begin(name)
    train(model, optimizer, schedule, seed=1)
    state = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}
    torch.save(state, tmp_path / "state.ckpt")

    other, its_optimizer, its_schedule = begin(name)
    other.load_state_dict(model.state_dict())
    restore(its_optimizer, its_schedule, read_state(tmp_path / "state.ckpt"))
    for one in ((model, optimizer, schedule), (other, its_optimizer, its_schedule)):
        train(*one, seed=2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("wrong", [(4,), (3, 4, 2), (2, 3, 4), (4, 3, 2, 2), (8, 3, 2)])
def test_moments_of_another_shape_are_refused(wrong):
    _, optimizer, schedule = begin("adam")
    train(*begin("adam"), seed=1)
    model, trained, its_schedule = begin("adam")
    train(model, trained, its_schedule, seed=1)
    state = {"optimizer": trained.state_dict(), "scheduler": its_schedule.state_dict()}
    index = next(i for i, p in enumerate(p for g in trained.param_groups for p in g["params"]) if p.ndim == 1)
    state["optimizer"]["state"][index]["exp_avg"] = torch.zeros(*wrong, 7)
    with pytest.raises(ValueError, match="exp_avg of parameter .* has shape"):
        restore(optimizer, schedule, state)


def test_what_training_cannot_give_is_refused_at_the_start():
    with pytest.raises(ZooError, match="adahessian needs second derivatives"):
        begin("adahessian")
