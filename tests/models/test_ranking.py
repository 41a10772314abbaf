import numpy as np
import pytest

from t5lite.data.batching.features import EncoderLayout, batch_of
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.models.architectures import EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.objectives.ranking import Ranking
from tests import small
from tests.models.encoders import BERT_PARTS

# Of float32 sums in another order.
ROUNDING = 1e-5


def test_candidates_that_share_a_row_have_the_scores_that_each_has_by_itself():
    # Rows, and their padding, are longer than the learned positions.
    config = small.config(**{**BERT_PARTS, "num_encoder_layers": 1, "max_positions": 8})
    classes = Classes(count=1, per_token=False, structure="ranking", pooling="first")
    model = EncoderOnly(config, classes)
    vocabulary = ByteVocabulary()
    inputs = vocabulary.encode("ask<extra_id_0>yes<extra_id_0>n<extra_id_0>no")
    objective = Ranking(pair_length=8, num_candidates=3)
    together = objective.from_pair(inputs, vocabulary.encode("1 0 0"), vocabulary)
    alone = [
        {**part, "candidates": np.ones_like(part["inputs"])}
        for part in objective.parts(inputs, vocabulary)
    ]
    rows = [[together], [alone[2], together], *([part] for part in alone)]
    batch = batch_of(EncoderLayout(32, has_types=True, has_queries=True), rows)
    scores = np.asarray(small.logits(model, small.params(model), batch))[..., 0]
    found = scores[batch["encoder_loss_weights"] > 0]
    wanted = scores[2:, 0]
    assert np.ptp(wanted) > 0.01
    expected = [*wanted, wanted[2], *wanted, *wanted]
    assert found.tolist() == pytest.approx(expected, abs=ROUNDING)
