import json
import os
import pathlib

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.interop.t5x import read_t5x
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from tests import small

WIDE = {"embed_dim": 128, "num_heads": 2, "head_dim": 64, "mlp_dim": 136}
MODELS = {
    "t5_1_1": EncoderDecoder(small.config()),
    "t5_1_0": EncoderDecoder(small.config(mlp_activations=("relu",), tied_logits=True)),
    "byt5": EncoderDecoder(small.config(num_encoder_layers=3, num_decoder_layers=1)),
    "longt5": EncoderDecoder(small.config(encoder_attention="transient_global")),
    "decoder_only": DecoderOnly(small.decoder_config()),
}


def t5x_tree(model, *, scanned=False):
    """The model's parameters as T5X stores them: by layer with joined heads, or scanned."""
    made = {}
    for name, array in by_name(small.params(model)).items():
        stack, array = name.split("/")[0], np.asarray(array)
        name = name.replace("global_layer_norm", "attention/T5LayerNorm_0")
        if "/layers/" not in name:
            made[name] = array
        elif scanned:
            made[name.replace("/layers/", f"/{stack}/")] = np.moveaxis(array, 0, 1)
        else:
            for i, layer in enumerate(array):
                if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
                    layer = layer.reshape(layer.shape[0], -1)
                if name.endswith("out/kernel"):
                    layer = layer.reshape(-1, layer.shape[-1])
                made[name.replace("/layers/", f"/layers_{i}/")] = layer
    return made


def checkpoint(params, slots=None, step=7):
    state = {"step": np.int32(step)}
    if slots is not None:
        state["param_states"] = unflatten_dict(slots, sep="/")
    return {"target": unflatten_dict(params, sep="/"), "state": state}


def write_msgpack(folder, tree):
    folder.mkdir(parents=True)
    content = {"version": 3, "optimizer": tree}
    (folder / "checkpoint").write_bytes(flax.serialization.to_bytes(content))


def write_zarr(path, array):
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {"shape": array.shape, "dtype": array.dtype.str, "compressor": {"id": "gzip"}},
    }
    tensorstore.open(spec, create=True).result().write(array).result()


def write_partitioned(folder, tree):
    """Matrices in zarr directories of their own, described by specs with relative paths."""
    folder.mkdir(parents=True)
    flat = flatten_dict(tree, sep="/")
    for name, array in flat.items():
        if name.startswith("target") and array.ndim > 1:
            where = name.replace("/", ".")
            write_zarr(folder / where, array)
            flat[name] = {
                "driver": "zarr",
                "dtype": "float32",
                "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{where}/"},
                "metadata": {"shape": list(array.shape), "chunks": list(array.shape)},
            }
    content = {"version": 3, "optimizer": unflatten_dict(flat, sep="/")}
    (folder / "checkpoint").write_bytes(flax.serialization.to_bytes(content))


def write_aggregated(folder, tree):
    """T5X's first Orbax format: zarr for parameters, one msgpack file for the rest."""
    state = folder / "state"
    state.mkdir(parents=True)
    flat = flatten_dict(tree, sep="/")
    for name, array in flat.items():
        if name.startswith("target"):
            where = name.replace("/", ".")
            write_zarr(state / where, array)
            flat[name] = f"PLACEHOLDER://{where}"
    content = unflatten_dict(flat, sep="/")
    (state / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


def write_orbax(folder, tree):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        checkpointer.save((folder / "state").absolute(), args=ocp.args.PyTreeSave(tree))


FORMATS = {
    "msgpack": write_msgpack,
    "partitioned": write_partitioned,
    "aggregated": write_aggregated,
    "orbax": write_orbax,
}


def check_equal(foreign, model):
    expected = by_name(small.params(model))
    assert foreign.params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(foreign.params[name].load(), array, err_msg=name)


@pytest.mark.parametrize("form", FORMATS)
def test_every_parameter_of_every_format_is_read(form, tmp_path):
    model = MODELS["t5_1_1"]
    FORMATS[form](tmp_path / "checkpoint_7", checkpoint(t5x_tree(model)))
    foreign = read_t5x(tmp_path / "checkpoint_7")
    assert foreign.step == 7
    check_equal(foreign, model)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_and_family_are_inferred_from_the_arrays(name, tmp_path):
    model = MODELS[name]
    write_msgpack(tmp_path / "c", checkpoint(t5x_tree(model)))
    read = read_t5x(tmp_path / "c").model
    assert type(read) is type(model)
    assert read.config == small.config(
        **{f: getattr(model.config, f) for f in model.config.__dataclass_fields__ if f != "dtype"},
        dtype="bfloat16",
    )


def test_an_encoder_without_decoder_is_read(tmp_path):
    tree = {n: a for n, a in t5x_tree(MODELS["t5_1_1"]).items() if not n.startswith("decoder")}
    write_msgpack(tmp_path / "c", checkpoint(tree))
    assert isinstance(read_t5x(tmp_path / "c").model, EncoderOnly)


def test_scanned_layers_with_a_bias_each_are_read(tmp_path):
    model = EncoderDecoder(small.config(positions="layer_bias", num_encoder_layers=3))
    write_orbax(tmp_path / "checkpoint_7", checkpoint(t5x_tree(model, scanned=True)))
    foreign = read_t5x(tmp_path / "checkpoint_7")
    assert foreign.model.config.positions == "layer_bias"
    check_equal(foreign, model)


def test_format_leaves_of_flaxformer_are_skipped(tmp_path):
    tree = t5x_tree(MODELS["t5_1_1"])
    for name in ("__save_format_metadata__", "encoder/layers_0/__save_format_metadata__"):
        tree[f"{name}/__version__"] = np.int32(1)
    write_msgpack(tmp_path / "c", checkpoint(tree))
    check_equal(read_t5x(tmp_path / "c"), MODELS["t5_1_1"])


def heuristic_slots(params, rng):
    """T5X's slots for matrices: v_row omits the longer dimension, v_col the shorter."""
    slots = {}
    for name, array in params.items():
        empty, shape = np.zeros((1,), np.float32), np.array(array.shape)
        made = {"v_row": empty, "v_col": empty, "v": empty, "m": empty}
        order = np.argsort(shape, kind="stable")
        if array.ndim == 2 and shape[order[0]] >= 128:
            shorter, longer = order
            made["v_row"] = rng.random(np.delete(shape, longer), np.float32)
            made["v_col"] = rng.random(np.delete(shape, shorter), np.float32)
        else:
            made["v"] = rng.random(shape, np.float32)
        slots |= {f"{name}/{slot}": value for slot, value in made.items()}
    return slots


def test_adafactor_state_is_read_whole_and_factored(tmp_path):
    # 128 is the smallest size that is factored; query and out kernels are square matrices.
    model = EncoderDecoder(small.config(**WIDE))
    params = t5x_tree(model)
    slots = heuristic_slots(params, np.random.default_rng(0))
    write_msgpack(tmp_path / "c", checkpoint(params, slots))
    state = read_t5x(tmp_path / "c", optimizer_state=True).opt_state
    assert int(state["step"].load()) == 7

    def moment(name, field):
        return state[f"second_moment/{name}/{field}"].load()

    query, out = (f"encoder/layers_1/attention/{name}/kernel" for name in ("query", "out"))
    ours = "encoder/layers/attention/query/kernel"
    assert moment(ours, "row").shape == (2, 128, 1, 1)
    np.testing.assert_array_equal(moment(ours, "row")[1, :, 0, 0], slots[f"{query}/v_row"])
    np.testing.assert_array_equal(moment(ours, "column")[1, 0].ravel(), slots[f"{query}/v_col"])
    # The v_row of a square matrix belongs to its first dimension, which is that of heads here.
    ours = "encoder/layers/attention/out/kernel"
    np.testing.assert_array_equal(moment(ours, "row")[1, 0, 0], slots[f"{out}/v_col"])
    np.testing.assert_array_equal(moment(ours, "column")[1].ravel(), slots[f"{out}/v_row"])
    ours = "token_embedder/embedding"
    np.testing.assert_array_equal(moment(ours, "row")[0], slots[f"{ours}/v_row"])
    np.testing.assert_array_equal(moment(ours, "column")[:, 0], slots[f"{ours}/v_col"])
    whole = state["second_moment/decoder/layers/pre_mlp_layer_norm/scale"].load()
    theirs = slots["decoder/layers_1/pre_mlp_layer_norm/scale/v"]
    np.testing.assert_array_equal(whole[1], theirs)


def test_adafactor_state_of_scanned_layers_is_read(tmp_path):
    model = EncoderDecoder(small.config(**WIDE, positions="layer_bias", num_encoder_layers=3))
    params = t5x_tree(model, scanned=True)
    rng = np.random.default_rng(0)
    # T5X's rules: rows are `embed`, columns are heads, kv and mlp, layers are kept.
    kernels = {"query": ("e", "nhd"), "key": ("e", "nhd"), "value": ("e", "nhd")}
    slots = heuristic_slots(params, rng)
    for name, array in params.items():
        kind = name.split("/")[-2]
        if "/layers" in name or name.count("/") < 4:
            continue
        if kind in kernels or kind.startswith("wi"):
            row, column = array.shape[:2], array.shape[1:]
        elif kind in ("out", "wo"):
            row, column = (array.shape[1], array.shape[-1]), array.shape[:-1]
        else:
            continue
        slots |= {
            f"{name}/v_row": rng.random(row, np.float32),
            f"{name}/v_col": rng.random(column, np.float32),
            f"{name}/v": np.zeros((1,), np.float32),
        }
    for name, array in params.items():
        if array.ndim > 2 and "relpos" in name:
            slots |= {f"{name}/v": rng.random(array.shape, np.float32)}
    write_msgpack(tmp_path / "c", checkpoint(params, slots))
    state = read_t5x(tmp_path / "c", optimizer_state=True).opt_state
    name = "encoder/encoder/attention/out/kernel"
    ours = "second_moment/encoder/layers/attention/out/kernel"
    np.testing.assert_array_equal(state[f"{ours}/row"].load()[:, 0, 0], slots[f"{name}/v_row"])
    column = np.moveaxis(slots[f"{name}/v_col"], 1, 0)
    np.testing.assert_array_equal(state[f"{ours}/column"].load()[..., 0], column)
    name = "encoder/encoder/attention/query/kernel"
    ours = "second_moment/encoder/layers/attention/query/kernel"
    row = slots[f"{name}/v_row"].T
    np.testing.assert_array_equal(state[f"{ours}/row"].load()[:, :, 0, 0], row)
    np.testing.assert_array_equal(
        state[f"{ours}/column"].load()[:, 0], np.moveaxis(slots[f"{name}/v_col"], 0, 0)
    )


def test_published_test_checkpoint_of_t5x_is_read_completely():
    data = os.environ.get("T5LITE_DATA")
    if data is None:
        pytest.skip("set T5LITE_DATA to a directory with t5/t5x_test_t5_tiny.checkpoint_0.msgpack")
    path = pathlib.Path(data) / "t5" / "t5x_test_t5_tiny.checkpoint_0.msgpack"
    tree = flax.serialization.msgpack_restore(path.read_bytes())["optimizer"]
    theirs = flatten_dict(tree, sep="/")
    foreign = read_t5x(path, optimizer_state=True)
    assert sum(array.size for array in foreign.params.values()) == 518_240
    compared = 0
    for name, array in foreign.params.items():
        moments = foreign.opt_state[f"second_moment/{name}"].load()
        stack = "/layers/" in name
        for i, layer in enumerate(array.load()) if stack else [(0, array.load())]:
            path = name.replace("/layers/", f"/layers_{i}/")
            for ours, their in (
                (layer, theirs[f"target/{path}"]),
                (moments[i] if stack else moments, theirs[f"state/param_states/{path}/v"]),
            ):
                np.testing.assert_array_equal(ours.reshape(their.shape), their, err_msg=path)
                compared += their.size
    assert compared == 2 * 518_240


def broken(tmp_path, change):
    tree = t5x_tree(MODELS["t5_1_1"])
    change(tree)
    write_msgpack(tmp_path / "c", checkpoint(tree))
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("decoder/decoder_norm/scale"),
            "does not hold decoder/decoder_norm/scale, which its model needs",
        ),
        (lambda t: t.update({"lora/a": np.ones(3)}), "holds lora/a, which its model does not have"),
        (
            lambda t: t.update({"decoder/decoder_norm/scale": np.ones(3)}),
            r"decoder/decoder_norm/scale must have shape \(16,\) by the model's sizes, got \(3,\)",
        ),
        (
            lambda t: t.update({"encoder/layers_0/attention/qkv_fused/kernel": np.ones(3)}),
            "fused kernels of Flaxformer are not supported",
        ),
    ],
)
def test_arrays_that_do_not_match_the_model_are_rejected(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_t5x(broken(tmp_path, change))


def test_damaged_and_older_files_are_rejected(tmp_path):
    write_msgpack(tmp_path / "a", checkpoint(t5x_tree(MODELS["t5_1_1"])))
    path = tmp_path / "a" / "checkpoint"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_t5x(tmp_path / "a")
    path.write_bytes(flax.serialization.to_bytes({"version": 2, "optimizer": {}}))
    with pytest.raises(UserError, match="version 3 or later, got 2"):
        read_t5x(tmp_path / "a")
    path.write_bytes(b"\x80\x04\x95" + json.dumps({}).encode())
    with pytest.raises(UserError, match="truncated or damaged|got a"):
        read_t5x(tmp_path / "a")


def test_array_outside_the_checkpoint_is_rejected(tmp_path):
    tree = t5x_tree(MODELS["t5_1_1"])
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "../../x"}, "metadata": {}}
    tree["decoder/decoder_norm/scale"] = spec
    write_msgpack(tmp_path / "c", checkpoint(tree))
    with pytest.raises(UserError, match="must be in a folder beside it, got '../../x'"):
        read_t5x(tmp_path / "c")


def test_missing_array_is_named(tmp_path):
    write_partitioned(tmp_path / "c", checkpoint(t5x_tree(MODELS["t5_1_1"])))
    gone = tmp_path / "c" / "target.token_embedder.embedding"
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="token_embedder/embedding must be in .* does not exist"):
        read_t5x(tmp_path / "c")


@pytest.mark.parametrize("step", [-5, 2**40, np.array([1, 2]), 1.5])
def test_invalid_step_is_rejected(step, tmp_path):
    tree = checkpoint(t5x_tree(MODELS["t5_1_1"]))
    tree["state"]["step"] = np.asarray(step)
    write_msgpack(tmp_path / "c", tree)
    with pytest.raises(UserError, match="state/step must be a whole number in"):
        read_t5x(tmp_path / "c")


@pytest.mark.parametrize(
    "content", [{"version": "x", "optimizer": {}}, {"version": 3, "optimizer": 1}]
)
def test_file_of_another_structure_is_rejected(content, tmp_path):
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))
    with pytest.raises(UserError, match="version 3 or later|parameters of a model under 'target'"):
        read_t5x(tmp_path)


def test_adafactor_state_of_another_shape_is_rejected_before_reading(tmp_path):
    params = t5x_tree(MODELS["t5_1_1"])
    slots = heuristic_slots(params, np.random.default_rng(0))
    write_msgpack(tmp_path / "a", checkpoint(params, {**slots, "x/v": np.zeros(1, np.float32)}))
    with pytest.raises(
        UserError, match="state/param_states holds x/v, which its model does not have"
    ):
        read_t5x(tmp_path / "a", optimizer_state=True)
    name = "decoder/decoder_norm/scale/v"
    write_msgpack(tmp_path / "b", checkpoint(params, {**slots, name: np.zeros(5, np.float32)}))
    with pytest.raises(UserError, match=r"v: decoder/.* must have shape \(16,\) .*, got \(5,\)"):
        read_t5x(tmp_path / "b", optimizer_state=True)
