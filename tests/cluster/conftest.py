import hosts
import pytest

REASON = hosts.missing()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker(pytest.mark.cluster)
            if REASON:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="module")
def network():
    with hosts.Network() as network:
        yield network
