import jax
import jax.numpy as jnp
import numpy as np

from t5lite.inference.generate import greedy
from t5lite.models.architectures import EncoderDecoder
from tests import small
from tests.models import reference


def test_greedy_writes_the_likeliest_token_of_the_reference_each_time():
    model = EncoderDecoder(small.config())
    params, batch = small.params(model, seed=3), small.batch(3)
    wide = reference.float64(params)
    length = 7
    # Any id may serve as the end; a frequent one makes rows end early.
    free = _greedy_by_hand(wide, batch, length, eos_id=-1)
    eos_id = int(free[0, 3])
    written = greedy(model, params, jax.tree.map(jnp.asarray, batch), length=length, eos_id=eos_id)
    np.testing.assert_array_equal(written, _greedy_by_hand(wide, batch, length, eos_id=eos_id))
    assert (np.asarray(written)[0, 4:] == 0).all()


def _greedy_by_hand(params, batch, length, *, eos_id):
    rows = len(batch["encoder_input_tokens"])
    written = np.zeros((rows, 0), np.int64)
    for _ in range(length):
        inputs = np.pad(written, ((0, 0), (1, 0)))
        given = {"decoder_input_tokens": inputs, "decoder_segment_ids": np.ones_like(inputs)}
        token = reference.logits(params, {**batch, **given})[:, -1].argmax(-1)
        ended = (written == eos_id).any(axis=1)
        written = np.column_stack([written, np.where(ended, 0, token)])
    return written
