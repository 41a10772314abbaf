import pathlib

import numpy as np
import pytest

from t5lite.interop import huggingface
from tests.interop.comparison import check

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"
CASES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_logits_states_loss_and_gradients_equal_those_of_transformers(case):
    check(GOLDEN / case)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_back_the_same(case, tmp_path):
    foreign = huggingface.read(GOLDEN / case)
    huggingface.write(foreign, tmp_path, np.dtype(np.float32))
    again = huggingface.read(tmp_path)
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(array.load(), again.params[name].load(), err_msg=name)
