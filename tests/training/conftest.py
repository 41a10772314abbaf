import jax
import pytest

from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder
from tests import small
from tests.models.low_rank import LowRank


@pytest.fixture(scope="session")
def of_three_steps(text_file, data_dir, tmp_path_factory):
    """The state and the folder of a run of three steps, which nobody writes into."""
    folder = tmp_path_factory.mktemp("three")
    return small.train(small.run(text_file, data_dir, folder, total_steps=3)), folder


@pytest.fixture
def make_run(text_file, data_dir):
    return lambda model_dir, **changes: small.run(text_file, data_dir, model_dir, **changes)


@pytest.fixture(scope="session")
def tuned(text_file, data_dir, of_three_steps, tmp_path_factory):
    """Parameters of a base, and of a run that trains only its adapters, which starts from it."""
    source = of_three_steps[1] / "checkpoints" / "3"
    run = small.run(
        text_file,
        data_dir,
        tmp_path_factory.mktemp("tuned"),
        model=EncoderDecoder(small.config(adapters=(LowRank(),))),
        total_steps=2,
        initial_checkpoint=str(source),
        trainable=[".*/lora_.*"],
    )
    return by_name(of_three_steps[0].params), by_name(jax.device_get(small.train(run).params)), run
