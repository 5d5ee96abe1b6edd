"""Every adapter of the registry keeps the whole contract."""

import pytest
from statezoo.zoo import contracts
from statezoo.zoo.registry import entries

NAMES = [key for key in entries("dataset")]


@pytest.mark.parametrize("check", contracts.DATASET_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("key", NAMES)
def test_contract(key, check):
    entry = entries("dataset")[key]
    subset = key.partition(":")[2]
    assert check(entry.load(), {"subset": subset} if subset else {}) is None
