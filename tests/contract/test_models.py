"""Every model of the registry keeps the whole contract."""

import pytest
from statezoo.zoo import contracts
from statezoo.zoo.registry import entries


@pytest.mark.parametrize("check", contracts.MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("key", list(entries("model")))
def test_contract(key, check):
    assert check(key) is None
