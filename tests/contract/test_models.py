"""Every model of the registry keeps the whole contract."""

import pytest
from statezoo.zoo import contracts
from statezoo.zoo.registry import entries


@pytest.mark.parametrize("check", contracts.MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("key", contracts.distinct_models())
def test_contract(key, check):
    assert check(key) is None


def test_every_family_and_every_mixer_is_there():
    chosen, everything = contracts.distinct_models(), entries("model")
    assert {entry.cls for entry in everything.values()} == {everything[key].cls for key in chosen}
    assert {"mamba_130m", "mamba2_130m", "mamba2_lm", "tim4rec", "tim4rec.reference", "ssd4rec"} <= set(chosen)


@pytest.mark.parametrize("config", [{"tied": False}, {"hidden": 24}])
def test_the_layers_of_other_language_models_can_be_replaced(config, monkeypatch):
    made = contracts._tiny
    monkeypatch.setattr(contracts, "_tiny", lambda key: (*made(key)[:2], widened(made(key)[2], config)))
    contracts.layers_can_be_replaced("mamba_lm")


def widened(model, config):
    return type(model)(**{**model.config, **config})
