import pytest
from samples import A100, LAPTOP


@pytest.fixture
def laptop():
    return LAPTOP


@pytest.fixture
def a100():
    return A100
