import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.description import check_same, describe
from tests import small


def test_the_meaning_of_parameters_is_compared_and_how_to_compute_them_is_free():
    about = {"model": describe(EncoderDecoder(small.config()))}
    free = {"dtype": "bfloat16", "remat": "full", "scan_unroll": 2, "dropout_rate": 0.1}
    check_same(about, EncoderDecoder(small.config(**free)), "it")
    # A checkpoint of an older version, without a description.
    check_same({}, EncoderDecoder(small.config()), "it")


def test_a_field_that_an_older_checkpoint_does_not_have_had_its_default():
    about = {"model": describe(EncoderDecoder(small.config()))}
    del about["model"]["config"]["decoder_windows"]
    check_same(about, EncoderDecoder(small.config()), "it")
    message = r"it was trained with T5Config.decoder_windows \[\], got \[\[2, 2\]\]"
    with pytest.raises(UserError, match=message):
        check_same(about, EncoderDecoder(small.config(decoder_windows=(2,))), "it")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            EncoderDecoder(small.config(mlp_activations=("relu", "linear"))),
            r"it was trained with T5Config.mlp_activations \['gelu', 'linear'\], got \['relu', 'li",
        ),
        (EncoderDecoder(small.config(max_distance=99)), "T5Config.max_distance 128, got 99"),
        (DecoderOnly(small.decoder_config()), "architecture 'EncoderDecoder', got 'DecoderOnly'"),
    ],
    ids=["activations", "positions", "architecture"],
)
def test_a_model_in_which_parameters_mean_something_else_is_rejected(model, message):
    about = {"model": describe(EncoderDecoder(small.config()))}
    with pytest.raises(UserError, match=message):
        check_same(about, model, "it")
