import pytest

from tests import small


@pytest.fixture
def make_run(text_file, data_dir):
    return lambda model_dir, **changes: small.run(text_file, data_dir, model_dir, **changes)
