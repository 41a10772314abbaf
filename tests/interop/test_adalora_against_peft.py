"""AdaLoRA trained here and by peft (the extra `hf` and peft), from the same adapter and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.interop.merging import merge_adapters
from t5lite.interop.peft_files import module_names, write_peft
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.adapted_maps import adapted_maps, with_adapters
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.rank_budget import RankBudget, no_scores
from t5lite.training.state import TrainState, initial_opt_state, params_and_axes
from t5lite.training.step import make_train_step
from t5lite.training.trainable import split_params
from tests.conftest import SEED
from tests.interop.comparison import TOLERANCE, batch_of, check_close, nested
from tests.interop.test_peft_files import GOLDEN, logits_of, read

torch = pytest.importorskip("torch", reason="compares with torch: pip install -e '.[hf]' peft")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]' peft")
peft = pytest.importorskip("peft", reason="pip install peft")

from tests.interop import peft_adapters  # noqa: E402

STEPS = 50
# Small, so that rounding does not grow from step to step.
RATE = 0.001
BUDGET = {"initial_steps": 5, "final_steps": 10, "every_steps": 3}
CONFIG = {"init_r": 4, "target_r": 2, "lora_alpha": 5, "total_step": STEPS}
SCHEDULE = {"tinit": 5, "tfinal": 10, "deltaT": 3, "orth_reg_weight": 0.1}
TRAINED = (".*/lora_(down|values|up)",)
# float32 in two libraries, over 50 steps.
ROUNDING = 1e-3


def peft_model(folder):
    """A new adapter of peft with singular values other than 0, also saved in a folder."""
    # Without this task, peft leaves the penalty out.
    config = peft.AdaLoraConfig(
        **CONFIG, **SCHEDULE, target_modules=peft_adapters.T5_NAMES, task_type="SEQ_2_SEQ_LM"
    )
    torch.manual_seed(SEED)
    model = peft.get_peft_model(peft_adapters.load_base("t5_1_1"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.copy_(torch.randn(parameter.shape))
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def train_peft(model, outputs):
    """Takes the steps as peft's example does, and returns the losses."""
    tensors = {name: torch.from_numpy(array).long() for name, array in outputs.items()}
    labels = tensors["targets"].masked_fill(tensors["targets_mask"] == 0, -100)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for step in range(1, STEPS + 1):
        loss = model(
            input_ids=tensors["inputs"],
            attention_mask=tensors["inputs_mask"],
            decoder_attention_mask=tensors["targets_mask"],
            labels=labels,
        ).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_here(foreign, outputs):
    """Takes the same steps, and returns the losses and the state after them."""
    model, params = foreign.model, nested(dict(foreign.params))
    hyper = Hyperparameters(
        optimizer=make_optimizer(optax.sgd, name="sgd", learning_rate=RATE),
        loss=CrossEntropy(z_loss=0.0),
        seed=np.int32(0),
        dropout_rate=None,
        max_gradient_norm=None,
        rank_budget=RankBudget(
            target_rank=2, total_steps=STEPS, orthogonality_weight=0.1, **BUDGET
        ),
    )
    _, axes = params_and_axes(model)
    batch = batch_of(outputs)
    weights = jnp.asarray(outputs["targets_mask"])
    batch |= {
        "decoder_target_tokens": outputs["targets"] * weights,
        "decoder_loss_weights": weights,
    }
    step = jax.jit(make_train_step(model, axes, trainable=TRAINED))
    state = TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        opt_state=initial_opt_state(hyper, params, axes, TRAINED),
        ranks=no_scores(split_params(params, TRAINED)[0]),
    )
    losses = []
    for _ in range(STEPS):
        state, sums = step(as_inputs(hyper), state, batch)
        losses.append(float(sums["loss"] / sums["tokens"]))
    return losses, state, sums


def ranks_of(model, params):
    """The singular values that are left, by PEFT's names."""
    modules = module_names(with_adapters(model, ()))
    found = {}
    for name, one in adapted_maps(model).items():
        values = np.asarray(params[f"{name}/lora_values"])
        for layer, row in enumerate(values if one.stacked_layers else [values]):
            found[f"{modules[name].format(layer=layer)}.lora_E"] = (row != 0).tolist()
    return found


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
# AdaLoRA may remove all of a map.
@pytest.mark.filterwarnings("ignore:Adapter .default.* LoRA tensor.* have invalid shape")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
def test_adalora_trains_as_in_peft_and_its_files_go_both_ways(tmp_path):
    transformers.logging.set_verbosity_error()
    theirs = peft_model(tmp_path / "first")
    outputs = dict(np.load(GOLDEN / "huggingface" / "t5_1_1" / "outputs.npz"))
    foreign = read("t5_1_1", tmp_path / "first")
    wanted = peft_adapters.logits(
        peft_adapters.load_adapter("t5_1_1", tmp_path / "first"), "t5_1_1"
    )
    logits, counts = logits_of(foreign, "t5_1_1")
    check_close("first logits", logits[counts], wanted[counts], TOLERANCE)

    losses, state, sums = train_here(foreign, outputs)
    np.testing.assert_allclose(losses, train_peft(theirs, outputs), rtol=ROUNDING)
    theirs.save_pretrained(tmp_path / "trained")
    ours = ranks_of(foreign.model, by_name(state.params))
    pattern = theirs.peft_config["default"].rank_pattern
    assert ours == {name.replace(".default", ""): kept for name, kept in pattern.items()}
    assert len({sum(kept) for kept in ours.values()}) > 1
    assert float(sums["mean_rank"]) == np.mean([sum(kept) for kept in ours.values()]) == 2

    # The file holds what is left of each map; the same in float32 steps of another library.
    trained = read("t5_1_1", tmp_path / "trained")
    for name, array in trained.params.items():
        if "lora_" in name:
            mine = np.asarray(by_name(state.params)[name])
            left = array.load() != 0
            np.testing.assert_allclose(mine[left], array.load()[left], atol=ROUNDING)
    model = peft_adapters.load_adapter("t5_1_1", tmp_path / "trained")
    wanted = peft_adapters.logits(model, "t5_1_1")
    for each in (trained, merge_adapters(trained)):
        logits, counts = logits_of(each, "t5_1_1")
        check_close("logits of the trained adapter", logits[counts], wanted[counts], TOLERANCE)
    (tmp_path / "ours").mkdir()
    write_peft(trained, tmp_path / "ours", None)
    again = peft_adapters.logits(peft_adapters.load_adapter("t5_1_1", tmp_path / "ours"), "t5_1_1")
    check_close("logits of peft", again[counts], wanted[counts], 1e-6)
    assert read("t5_1_1", tmp_path / "ours").model == trained.model
