"""Against peft (the extra `hf` and peft), on fresh random adapters."""

import numpy as np
import pytest

from t5lite.interop.peft_files import write_peft
from tests.conftest import SEED
from tests.interop.comparison import TOLERANCE, check_close
from tests.interop.test_peft_files import logits_of, read

pytest.importorskip("torch", reason="compares with torch: pip install -e '.[hf]' peft")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]' peft")
pytest.importorskip("peft", reason="pip install peft")

from tests.interop import peft_adapters  # noqa: E402


# transformers warns of what peft calls.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
# AdaLoRA may remove all of a map.
@pytest.mark.filterwarnings("ignore:Adapter .default.* LoRA tensor.* have invalid shape")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("case", sorted(peft_adapters.CASES))
def test_fresh_adapters_give_equal_logits_both_ways(case, tmp_path):
    transformers.logging.set_verbosity_error()
    base, _ = peft_adapters.CASES[case]
    peft_adapters.make(case, tmp_path / "theirs", SEED)
    foreign = read(base, tmp_path / "theirs")
    wanted = np.load(tmp_path / "theirs" / "logits.npy")
    logits, counts = logits_of(foreign, base)
    check_close("logits", logits[counts], wanted[counts], TOLERANCE)

    (tmp_path / "ours").mkdir()
    write_peft(foreign, tmp_path / "ours", None)
    again = peft_adapters.logits(peft_adapters.load_adapter(base, tmp_path / "ours"), base)
    check_close("logits of peft", again[counts], wanted[counts], 1e-6)
