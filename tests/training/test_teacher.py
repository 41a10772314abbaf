"""Training with a teacher, whose parameters are inputs of the step and in no state."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import read_metrics
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.adapted_maps import with_adapters
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.flops import forward_flops
from t5lite.models.frozen import JoinedRows, SameRows
from t5lite.models.prompt_tuning import PromptTuning
from t5lite.training import loop
from t5lite.training.checkpoint_names import open_checkpoint
from t5lite.training.frozen import load_frozen, open_frozen
from t5lite.training.step import compile_once
from t5lite.training.teacher import Teacher
from tests import small
from tests.losses.test_distillation import log_softmax
from tests.training.teachers import (
    DECODER,
    LOSS,
    SIZES,
    STUDENT,
    batches,
    distilled_run,
    save_teacher,
)

# Sums of some hundred losses in float32.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The MODEL_DIR of a decoder-only teacher."""
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def make(make_run):
    return lambda *args, **changes: distilled_run(make_run, *args, **changes)


@pytest.fixture(scope="module")
def program(teacher, text_file, data_dir, tmp_path_factory):
    """The program of all runs, and its compiled step."""
    folder = tmp_path_factory.mktemp("program")
    run = distilled_run(lambda path: small.run(text_file, data_dir, path), folder, teacher)
    program = small.program_of(run)
    return program, compile_once(program, print)()


@pytest.fixture(scope="module")
def train(program):
    """A function that trains a run of the program, without evaluations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_once", lambda of_run, log: lambda: program[1])

        def go(run):
            frozen = open_frozen(run, program[0].mesh)
            of_run = dataclasses.replace(program[0].of(run), frozen=frozen)
            return loop.train(
                of_run, evaluate=lambda params: small.NO_SCORES, config_text="# all that holds\n"
            )

        yield go


@pytest.fixture(scope="module")
def trained(program, train, tmp_path_factory):
    """The last state and the MODEL_DIR of an uninterrupted run, which nobody writes into."""
    folder = tmp_path_factory.mktemp("distilled")
    return jax.device_get(train(dataclasses.replace(program[0].run, model_dir=str(folder)))), folder


def expected_loss(run, params):
    """Loss per token of the first batch in float64, from logits of each example on its own."""
    batch = jax.device_get(batches(run)[0])
    logits = np.asarray(small.logits(run.model, params, batch), np.float64)
    of_teacher = small.params(DECODER, 1)
    total = 0.0
    tokens = np.zeros((run.batch_size, 25), np.int32)
    examples = []
    for row in range(run.batch_size):
        inputs = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] > 0]
        targets = batch["decoder_target_tokens"][row][batch["decoder_segment_ids"][row] > 0]
        tokens[row, : len(inputs) + len(targets)] = [*inputs, *targets]
        examples.append((inputs, targets))
    teachers = {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
    of_rows = np.asarray(small.logits(DECODER, of_teacher, teachers), np.float64)
    for row, (inputs, targets) in enumerate(examples):
        theirs = of_rows[row]
        for t, target in enumerate(targets):
            cross_entropy = -log_softmax(logits[row, t])[target]
            before = len(inputs) + t - 1
            if t == len(targets) - 1 or before < 0:
                total += cross_entropy
                continue
            log_p, log_q = (log_softmax(x / 2) for x in (theirs[before], logits[row, t]))
            divergence = (np.exp(log_p) * (log_p - log_q)).sum()
            total += 0.4 * cross_entropy + 0.6 * 4 * divergence
    return total / batch["decoder_loss_weights"].sum()


@pytest.mark.proof
def test_the_first_step_has_the_loss_of_the_formula(trained, program):
    run = program[0].run
    initial = program[0].init(program[0].hyper).params
    metrics = [m for m in read_metrics(trained[1]) if m["split"] == "train"]
    assert metrics[0]["loss_nats_per_token"] == pytest.approx(
        expected_loss(run, initial), rel=ROUNDING
    )
    assert 0.5 < metrics[0]["distilled_tokens_fraction"] < 1
    assert metrics[-1]["distillation_nats_per_token"] < metrics[0]["distillation_nats_per_token"]


@pytest.mark.proof
def test_checkpoints_have_the_path_and_the_fingerprint_of_the_teacher_alone(trained, teacher):
    source, step = open_checkpoint(str(trained[1]))
    described = source.about(step)["frozen"]["teacher"]
    assert described["checkpoint"] == str(teacher / "checkpoints" / "0")
    assert len(described["fingerprint"]) == 16
    names = set(by_name(source.metadata(step)["params"], is_leaf=lambda x: hasattr(x, "shape")))
    assert names == set(by_name(small.params(STUDENT)))


@pytest.mark.proof
def test_a_resumed_run_equals_an_uninterrupted_one_with_a_copy_of_the_teacher(
    trained, train, teacher, make, tmp_path
):
    run = make(tmp_path / "run", teacher, total_steps=2)
    train(run)
    copy = shutil.copytree(teacher, tmp_path / "copy")
    state = train(make(tmp_path / "run", copy))
    jax.tree.map(np.testing.assert_array_equal, trained[0], jax.device_get(state))


@pytest.mark.proof
def test_a_run_with_another_teacher_or_none_does_not_resume(
    trained, train, teacher, make, tmp_path
):
    folder = shutil.copytree(trained[1], tmp_path / "run")
    other = save_teacher(tmp_path / "other", seed=2)
    for changes in ({"teacher": Teacher(checkpoint=str(other))}, {"teacher": None}):
        run = make(folder, teacher, total_steps=6)
        if changes["teacher"] is None:
            changes["loss"] = CrossEntropy()
        pattern = r"was trained with the teacher .*/0 \(\w{16}\), got (.*/0 \(\w{16}\)|none); use"
        with pytest.raises(UserError, match=pattern):
            train(dataclasses.replace(run, **changes))


OTHER_SIZES = {**SIZES, "embed_dim": 16}
BIDIRECTIONAL = EncoderOnly(
    small.config(**{**SIZES, "num_decoder_layers": 0}, num_encoder_layers=1)
)


@pytest.mark.parametrize(
    ("model", "settings", "changes", "message"),
    [
        (
            BIDIRECTIONAL,
            {},
            {},
            "of the kind of the model, EncoderDecoder, or .*EncoderOnly",
        ),
        (
            EncoderDecoder(small.config(**SIZES, num_encoder_layers=1, start_token=2)),
            {},
            {},
            r"must have the T5Config.start_token of the model \(0\), got 2",
        ),
        (
            with_adapters(STUDENT, (PromptTuning(length=2),)),
            {},
            {},
            r"as many vectors in its prompt \(0\), got 2 of EncoderDecoder; use PrefixTuning",
        ),
        (STUDENT, {"start_token": 0}, {}, "start_token is for a decoder-only teacher of an"),
        (DECODER, {"start_token": 0}, {"packed": True}, "start_token must be None with train.pack"),
        (DECODER, {"start_token": 384}, {}, "start_token must be under the T5Config.vocab_size"),
        (DECODER, {"dtype": "float8"}, {}, "Teacher.dtype is unknown: got 'float8'"),
        (DECODER, {}, {"loss": CrossEntropy()}, "train.teacher is used by no loss, got train.loss"),
        (None, {"checkpoint": "/none"}, {}, "checkpoint '/none' not found; name a MODEL_DIR"),
    ],
    ids=[
        "kind",
        "start",
        "prompt",
        "start for one kind",
        "packed",
        "id",
        "dtype",
        "loss",
        "missing",
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error_before_compilation(
    model, settings, changes, message, make, tmp_path
):
    if model is not None:
        settings = {"checkpoint": str(save_teacher(tmp_path / "teacher", model)), **settings}

    def opened():
        run = make(tmp_path / "run", Teacher(**settings), **changes)
        return open_frozen(run, small.mesh(run))

    with pytest.raises(UserError, match=message):
        opened()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (
            ByteVocabulary(special=SpecialTokens(bos_id=2)),
            r"of the run, Byte\S+, got Byte.*bos_id=2",
        ),
        (None, "got a checkpoint without one; convert it again with convert.vocabulary"),
    ],
    ids=["another", "none"],
)
def test_a_teacher_with_another_vocabulary_is_an_error(vocabulary, message, make, tmp_path):
    run = make(tmp_path / "run", save_teacher(tmp_path / "teacher", vocabulary=vocabulary))
    with pytest.raises(UserError, match=message):
        open_frozen(run, small.mesh(run))


def test_a_loss_without_its_teacher_and_parameters_that_are_not_finite_are_errors(make, tmp_path):
    distilled = make(tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match="Distillation needs train.teacher, got none; bind train.t"):
        dataclasses.replace(distilled, teacher=None)
    folder = save_teacher(tmp_path / "teacher", change=lambda x: x.at[..., 0].set(np.nan))
    run = make(tmp_path / "run", folder)
    with pytest.raises(UserError, match="the teacher .* must have finite parameters, got some"):
        load_frozen(open_frozen(run, small.mesh(run)), print)


def test_an_encoder_decoder_teacher_reads_the_batch_itself(make, tmp_path):
    wide = EncoderDecoder(small.config(**OTHER_SIZES, num_encoder_layers=1))
    folder = save_teacher(tmp_path / "teacher", wide)
    run = make(tmp_path / "run", Teacher(checkpoint=str(folder), param_dtype="bfloat16"))
    part = open_frozen(run, small.mesh(run))["teacher"]
    assert part.rows == SameRows()
    assert part.flops_per_row == forward_flops(wide, run.layout.lengths)
    # Half of the memory, and values to 8 bits.
    loaded = by_name(load_frozen({"teacher": part}, print)["teacher"])
    for name, value in by_name(small.params(wide, 1)).items():
        assert loaded[name].dtype == jnp.bfloat16
        np.testing.assert_allclose(loaded[name].astype(np.float32), value, rtol=2**-8)


def test_rows_of_both_are_as_long_as_an_example_and_packed_ones_as_those_of_the_batch(
    teacher, make, tmp_path
):
    for packed, length in ((False, 14), (True, 25)):
        run = make(tmp_path, teacher, packed=packed)
        part = open_frozen(run, small.mesh(run))["teacher"]
        assert part.rows == JoinedRows(length=length, unknown_eos=1)
        # Logits of the 13 targets alone.
        whole = forward_flops(DECODER, {"decoder_input_tokens": length})
        assert part.flops_per_row == whole - 2 * 8 * 384 * (length - 13)


def test_a_decoder_only_model_has_a_teacher_of_its_own_kind(make_run, tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    run = make_run(
        tmp_path / "run", causal=True, loss=LOSS, teacher=Teacher(checkpoint=str(folder))
    )
    part = open_frozen(run, small.mesh(run))["teacher"]
    batch = batches(run)[0]
    assert part.rows(batch).batch is batch
    assert isinstance(run.model, DecoderOnly)
