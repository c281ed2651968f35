import pytest


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """An empty cache for the tests of one file, so that no stored result is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the file that takes longest first, so that both workers end at the same time."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
