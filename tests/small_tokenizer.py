"""A SentencePiece model of a few pieces, small enough to be read thousands of times."""

import string

from sentencepiece import sentencepiece_model_pb2

UNKNOWN, CONTROL, NORMAL = 2, 3, 1


def small_model() -> bytes:
    """Returns a unigram model of 60 pieces: the special ones, letters and some words."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 1
    model.trainer_spec.pad_id = 0
    model.trainer_spec.eos_id = 1
    model.trainer_spec.unk_id = 2
    model.trainer_spec.bos_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    special = (("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
    for piece, kind in special:
        model.pieces.add(piece=piece, score=0.0, type=kind)
    words = ["\u2581", "\u2581the", "\u2581cat", "sat", "at"]
    for number, piece in enumerate([*words, *string.ascii_letters]):
        model.pieces.add(piece=piece, score=-1.0 - number / 10, type=NORMAL)
    assert len(model.pieces) == 60
    return model.SerializeToString()
