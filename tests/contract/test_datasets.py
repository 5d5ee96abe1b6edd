"""Every adapter of the registry keeps the whole contract."""

import pytest
from statezoo.zoo import contracts
from statezoo.zoo.registry import entries

CASES = [
    pytest.param(key, given, id="-".join([key, *given.values()]))
    for key, entry in entries("dataset").items()
    for given in contracts.variants(entry.load(), {"subset": key.partition(":")[2]} if ":" in key else {})
]


@pytest.mark.parametrize("check", contracts.DATASET_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("key", "config"), CASES)
def test_contract(key, config, check):
    assert check(entries("dataset")[key].load(), config) is None


def test_a_split_that_holds_nothing_out_keeps_what_of_the_contract_is_not_of_evaluation():
    log = entries("dataset")["log"].load()
    assert contracts.check_dataset(log, split="all") == contracts.check_dataset(log)
    data = log.sample(split="all")
    assert not data.evaluates and log.sample().evaluates
    sizes = {name: len(part) for name, part in data.parts.items()}
    assert sizes["train"] > 0 == sizes["valid"] == sizes["test"]
    assert data.check()["split_hash"] != log.sample().split_hash()
