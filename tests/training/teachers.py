"""Checkpoints of teachers, and runs that have one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.distillation import Distillation
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.description import describe
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.feed import Feed
from t5lite.training.teacher import Teacher
from tests import small

SIZES = {"embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8, "num_decoder_layers": 1}
DECODER = DecoderOnly(small.decoder_config(**SIZES))
STUDENT = EncoderDecoder(small.config(**{**SIZES, "embed_dim": 16}, num_encoder_layers=1))
LOSS = Distillation(weight=0.6, cross_entropy=CrossEntropy(z_loss=0.0))


VOCABULARY = ByteVocabulary()


def save_teacher(folder, model=DECODER, *, seed=1, vocabulary=VOCABULARY, change=None):
    """Writes a converted checkpoint of random parameters, and returns its MODEL_DIR.

    Args:
        change: a function of each parameter, for what is wrong with it.
    """
    params = small.params(model, seed)
    if change is not None:
        params = jax.tree.map(change, params)
    about = {
        "model": describe(model),
        "vocabulary": None,
        "vocabulary_fingerprint": vocabulary and vocabulary.fingerprint,
    }
    checkpoints = Checkpoints(folder / FOLDER, asynchronous=False)
    checkpoints.save(0, {"step": np.int32(0), "params": params}, about)
    checkpoints.close()
    return folder


def distilled_run(make_run, model_dir, teacher, **changes):
    """A run of a small encoder-decoder with a teacher."""
    run = make_run(model_dir)
    task = dataclasses.replace(run.task, objective=PrefixLM(inputs_length=12, targets_length=13))
    choices = {
        "model": STUDENT,
        "task": task,
        "loss": LOSS,
        "teacher": teacher if isinstance(teacher, Teacher) else Teacher(checkpoint=str(teacher)),
        "total_steps": 4,
        "checkpoint_every_steps": 2,
        **changes,
    }
    return dataclasses.replace(run, **choices)


def batches(run, count=1):
    """The first batches of a run."""
    feed = Feed(run, range(run.batch_size), None, log=print)
    taken = [batch for _, batch in zip(range(count), feed, strict=False)]
    feed.close()
    return [jax.tree.map(jnp.asarray, batch) for batch in taken]
