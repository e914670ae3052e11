import hosts
import pytest

REASON = hosts.missing()


def pytest_collection_modifyitems(config, items):
    asked = "cluster" in config.option.markexpr
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker(pytest.mark.cluster)
            if REASON or not asked:
                item.add_marker(pytest.mark.skip(reason=REASON or "minutes long: make test-cluster"))


@pytest.fixture(scope="module")
def network():
    with hosts.Network() as network:
        yield network
