import pytest

from tests import small


@pytest.fixture(scope="session")
def of_three_steps(text_file, data_dir, tmp_path_factory):
    """The state and the folder of a run of three steps, which nobody writes into."""
    folder = tmp_path_factory.mktemp("three")
    return small.train(small.run(text_file, data_dir, folder, total_steps=3)), folder


@pytest.fixture
def make_run(text_file, data_dir):
    return lambda model_dir, **changes: small.run(text_file, data_dir, model_dir, **changes)
