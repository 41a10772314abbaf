import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.adapters import MapWeights
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from tests.models import single_map

# float32 against float64: sums of up to eight products of numbers around 1, some of them tripled.
TOLERANCE = 2e-5
ADAPTERS = {
    "lora": LoRA(targets=(".*",), rank=2, alpha=3.0),
    "rslora": LoRA(targets=(".*",), rank=2, alpha=3.0, rank_stabilized=True),
    "dora": LoRA(targets=(".*",), rank=2, alpha=3.0, decomposed=True),
    "pissa": LoRA(targets=(".*",), rank=2, alpha=3.0, initialization="pissa"),
    "dora_from_pissa": LoRA(targets=(".*",), rank=2, decomposed=True, initialization="pissa"),
    "ia3_outputs": IA3(targets=(".*",), input_targets=()),
    "ia3_inputs": IA3(targets=(), input_targets=(".*",)),
}


def expected_weights(one, adapter, params):
    """The kernel [stacked, inputs, outputs] and the bias that the definitions give, in float64."""
    inputs, outputs = single_map.sizes(one)

    def of(name, rows, columns):
        return single_map.matrices(one, params[name], inputs=rows, outputs=columns)

    kernel = of("kernel", inputs, outputs)
    bias = params.get("bias")
    if isinstance(adapter, IA3):
        if adapter.scales_inputs(one.full_name):
            return kernel * of("ia3_scale", inputs, 1), bias
        scaled = None if bias is None else np.float64(bias) * np.float64(params["ia3_scale"])
        return kernel * of("ia3_scale", 1, outputs), scaled
    rank = adapter.rank
    scale = adapter.alpha / (math.sqrt(rank) if adapter.rank_stabilized else rank)
    update = of("lora_down", inputs, rank) @ of("lora_up", rank, outputs)
    if adapter.initialization == "pissa":
        update -= of("lora_initial_down", inputs, rank) @ of("lora_initial_up", rank, outputs)
    kernel = kernel + scale * update
    if adapter.decomposed:
        norm = np.sqrt(np.square(kernel).sum(axis=1, keepdims=True))
        kernel = of("lora_magnitude", 1, outputs) * kernel / norm
    return kernel, bias


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *[(shape, name) for shape in ("biased", "experts") for name in ADAPTERS],
        ("out", "dora_from_pissa"),
        ("out", "ia3_inputs"),
        ("query", "rslora"),
    ],
)
def test_an_adapted_map_is_the_map_with_the_changed_kernel(name, shape, rng):
    one = single_map.make(shape, ADAPTERS[name])
    x, params = single_map.drawn(one, rng)
    kernel, bias = expected_weights(one, ADAPTERS[name], params)
    wanted = single_map.product(one, x, kernel, bias)
    got = one.apply({"params": params}, x)
    np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE * np.abs(wanted).max())

    site = single_map.site(one, params)
    own = MapWeights(params["kernel"], params.get("bias"))
    merged = ADAPTERS[name].merged(site, own, params)
    merged_kernel = np.asarray(merged.kernel).reshape(kernel.shape)
    limit = TOLERANCE * np.abs(kernel).max()
    np.testing.assert_allclose(merged_kernel, kernel, rtol=TOLERANCE, atol=limit)
    if bias is not None:
        np.testing.assert_allclose(merged.bias, bias, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_new_adapter_changes_nothing(name, seed):
    one = single_map.make("query", ADAPTERS[name])
    x = jax.random.normal(jax.random.key(seed), (2, 3, 6))
    boxes = one.init(jax.random.key(seed), x)["params"]
    params = {part: box.value for part, box in boxes.items()}
    base = single_map.make("query").apply({"params": {"kernel": params["kernel"]}}, x)
    got = one.apply({"params": params}, x)
    np.testing.assert_allclose(got, base, rtol=TOLERANCE, atol=TOLERANCE)


def test_pissa_starts_from_the_best_approximation_of_its_rank(rng):
    adapter = ADAPTERS["pissa"]
    one = single_map.make("query", adapter)
    _, params = single_map.drawn(one, rng)
    first = adapter.from_kernel(single_map.site(one, params), params["kernel"])
    kernel = np.asarray(params["kernel"], np.float64).reshape(6, 8)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    down = np.asarray(first["lora_down"])
    up = np.asarray(first["lora_up"]).reshape(2, 8)
    got = adapter.scale * down @ up
    np.testing.assert_allclose(got, best, atol=TOLERANCE * np.abs(best).max())
    # Both factors have the roots of the singular values.
    norms = [np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)


def test_the_norm_of_dora_has_no_gradient(rng):
    adapter = ADAPTERS["dora"]
    one = single_map.make("query", adapter)
    x, params = single_map.drawn(one, rng)
    weights = jnp.asarray(rng.normal(size=(2, 3, 2, 4)), jnp.float32)
    grads = jax.grad(lambda p: jnp.sum(weights * one.apply({"params": p}, x)))(params)

    rows = np.float64(x).reshape(-1, 6)
    of_result = np.float64(weights).reshape(-1, 8)
    down = np.float64(params["lora_down"])
    kernel = np.float64(params["kernel"]).reshape(6, 8)
    changed = kernel + adapter.scale * down @ np.float64(params["lora_up"]).reshape(2, 8)
    norm = np.linalg.norm(changed, axis=0)
    factor = np.float64(params["lora_magnitude"]).reshape(8) / norm
    of_up = adapter.scale * (rows @ down).T @ (of_result * factor)
    of_magnitude = np.sum(of_result * (rows @ changed) / norm, axis=0)
    for name, wanted in (("lora_up", of_up), ("lora_magnitude", of_magnitude)):
        got = np.asarray(grads[name]).reshape(wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_lora_drops_inputs_in_training_alone(rng, seed):
    one = single_map.make("query", LoRA(targets=(".*",), rank=2, dropout_rate=0.5))
    x, params = single_map.drawn(one, rng)
    params["kernel"] = jnp.zeros_like(params["kernel"])
    whole = one.apply({"params": params}, x)
    again = single_map.make("query", LoRA(targets=(".*",), rank=2)).apply({"params": params}, x)
    np.testing.assert_array_equal(whole, again)
    keys = jax.random.split(jax.random.key(seed), 4000)
    train = jax.jit(jax.vmap(lambda key: one.apply({"params": params}, x, rngs={"dropout": key})))
    results = np.asarray(train(keys), np.float64)
    assert np.abs(results[0] - results[1]).max() > 0.1
    # The mean of 4,000 draws; six standard errors.
    error = 6 * results.std(axis=0) / math.sqrt(len(keys))
    assert np.all(np.abs(results.mean(axis=0) - whole) <= error + TOLERANCE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=0), "LoRA.rank must be a whole number >= 1, got 0"),
        (lambda: LoRA(alpha=0.0), "LoRA.alpha must be over 0, got 0.0"),
        (lambda: LoRA(dropout_rate=1.0), r"LoRA.dropout_rate must be in \[0, 1\), got 1.0"),
        (lambda: LoRA(targets=("(",)), "LoRA.targets must be regular expressions, got '\\('"),
        (lambda: LoRA(targets=()), "LoRA.targets must name at least one pattern, got none"),
        (lambda: LoRA(initialization="pisa"), "LoRA.initialization .*'pisa'.*pissa"),
        (lambda: IA3(targets=(), input_targets=()), "IA3.targets must be patterns if input"),
    ],
)
def test_fields_out_of_range_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            LoRA(targets=(".*",), rank=7, initialization="pissa"),
            "LoRA.rank must be at most 6 with 'pissa', the rank of mlp/query, got 7",
        ),
        (
            IA3(targets=(".*",), input_targets=("mlp/.*",)),
            "IA3.targets and IA3.input_targets are mutually exclusive, got both for mlp/query",
        ),
    ],
)
def test_what_does_not_fit_a_map_is_rejected(adapter, message):
    with pytest.raises(UserError, match=message):
        single_map.make("query", adapter).init(jax.random.key(0), jnp.ones((1, 1, 6)))
