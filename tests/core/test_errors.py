import pytest

from t5lite.core.errors import UserError, choose


def test_choose_suggests_the_nearest_name():
    with pytest.raises(UserError, match=r"T5Config.dtype is unknown: got 'bfloat'.*'bfloat16'"):
        choose("T5Config.dtype", "bfloat", {"bfloat16": 1, "float32": 2})
