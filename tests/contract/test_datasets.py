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
