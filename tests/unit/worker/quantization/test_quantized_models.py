"""Engines with quantized checkpoints compute what engines with the plain weights that these mean compute."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from shared.errors import ConfigError
from shared.log import Log
from tests.unit.worker.driver import Driver, make_engine, rewritten
from tests.unit.worker.quantization.checkpoints import plain_checkpoint, quantized_checkpoint
from tests.unit.worker.ranks import Ranks
from tests.unit.worker.test_models import every_logprob, prompt
from tests.unit.worker.test_tensor_parallel import script

Checkpoints = Callable[[str, str], tuple[Path, Path]]
EVERYWHERE = ["awq 32", "gptq act-order 32", "compressed-tensors int4 zero points -1", "gguf Q4_1", "fp8 block"]
ON_LLAMA = [
    *EVERYWHERE, "awq 128", "gptq v1 64", "gptq v2 128", "gptq int8", "compressed-tensors int8",
    "compressed-tensors int8 packed", "compressed-tensors int4 symmetric 32", "compressed-tensors fp8 channel",
    "compressed-tensors fp8 tensor", "gguf Q4_0", "gguf Q8_0", "gptq int8 zero points",
    "compressed-tensors int8 packed zero points", "compressed-tensors int8 zero points",
    "compressed-tensors int8 zero points act-order", "compressed-tensors int4 act-order",
    "compressed-tensors int4 actorder static", "compressed-tensors int4 one by one 64", "fp8 tensor, one number",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`checkpoints(model, case)` gives the quantized checkpoint and the plain one that it means."""
    plain: dict[str, Path] = {}
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def get(model: str, case: str) -> tuple[Path, Path]:
        if model not in plain:
            plain[model] = plain_checkpoint(model, tmp_path_factory.mktemp(model))
        if (model, case) not in made:
            folder = tmp_path_factory.mktemp("quantized")
            made[model, case] = folder / "quantized", folder / "meant"
            quantized_checkpoint(plain[model], case, *made[model, case])
        return made[model, case]

    return get


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("model", "case"),
    [("llama", case) for case in ON_LLAMA]
    + [(model, case) for model in ("llama-tied", "qwen2", "mixtral") for case in EVERYWHERE],
)
def test_distributions_are_those_of_the_weights_that_are_meant(
    checkpoints: Checkpoints, model: str, case: str, backend: str
) -> None:
    quantized, meant = checkpoints(model, case)
    ids = prompt(60)
    ours, wanted = (
        every_logprob(Driver(make_engine(path, attention_backend=backend)), ids, chunk=23)
        for path in (quantized, meant)
    )
    assert np.abs(ours - wanted).max() / np.abs(wanted).max() < 2e-5


@pytest.mark.parametrize(
    ("model", "case"),
    [("llama", "awq 32"), ("llama", "compressed-tensors int4 zero points -1"), ("qwen2", "gguf Q4_1"),
     ("llama-tied", "gguf Q4_1"), ("mixtral", "gptq v1 32"), ("llama", "fp8 block"), ("llama", "gptq int8"),
     ("llama", "compressed-tensors int8 packed zero points")],
)  # fmt: skip
def test_ranks_share_packed_weights(checkpoints: Checkpoints, model: str, case: str) -> None:
    quantized, _ = checkpoints(model, case)
    plans, alone = script(quantized)
    with Ranks(quantized, 2) as ranks:
        assert ranks.tokens(plans) == alone


@pytest.mark.parametrize("case", ["gptq act-order 32", "compressed-tensors int4 act-order"])
def test_ranks_refuse_inputs_in_another_order(checkpoints: Checkpoints, case: str) -> None:
    """The first of them would wait for the second: the error comes before anything is shared."""
    quantized, _ = checkpoints("llama", case)
    with pytest.raises(ConfigError, match=r"o_proj: inputs in another order \((desc_act|actorder)\)"):
        _load_share(quantized)


def _load_share(path: Path) -> None:
    from services.worker.models.ops import TorchOps
    from services.worker.models.place import Place
    from services.worker.models.registry import build_model
    from services.worker.quantization.scheme import choose_scheme, quantization_config
    from services.worker.tensor_parallel import Alone, shard_model
    from shared.checkpoint.contents import shapes_of
    from shared.checkpoint.loader import load_checkpoint
    from shared.model_config import load_model_config

    config = load_model_config(path)
    scheme = choose_scheme(quantization_config(path), "auto")
    place = Place(
        shard_model(config, 2, 0), Alone(), TorchOps(), torch.float32, torch.device("cpu"), scheme, shapes_of(path)
    )
    model = build_model(config, place)
    load_checkpoint(path, model.targets(), tied=False, log=Log(logging.getLogger("rhizome"), {}))
    model.finish_loading()


def test_a_bias_of_zeros_that_a_tool_wrote_is_read(checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized, meant = checkpoints("llama", "gptq v1 32")
    ids = prompt(20)

    def add(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        products = {name.removesuffix(".scales"): value.shape[1] for name, value in weights.items() if "scales" in name}
        biases = {f"{name}.bias": torch.zeros(width) for name, width in products.items()}
        return weights | biases | {"model.layers.0.self_attn.v_proj.bias": torch.full((64,), 0.5)}

    plain = every_logprob(Driver(make_engine(meant)), ids, chunk=30)
    biased = every_logprob(Driver(make_engine(rewritten(quantized, tmp_path / "biased", add))), ids, chunk=30)
    assert np.abs(plain - biased).max() > 0.01


def test_the_log_says_what_quantization_saves(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    quantized, _ = checkpoints("llama-tied", "gguf Q4_1")
    with caplog.at_level(logging.INFO, "rhizome"):
        make_engine(quantized)
    (line,) = [record for record in caplog.records if record.message == "quantized weights"]
    fields = line.fields  # type: ignore[attr-defined]
    assert fields["format"] == "gguf Q4_1 Q8_0"
    assert 4 < fields["plain_bytes"] / fields["bytes"] < 6
    assert fields["gained_kv_tokens"] == (fields["plain_bytes"] - fields["bytes"]) // (2 * 2 * 4 * 16 * 4)


def test_the_log_warns_of_weights_that_are_expanded(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    quantized, _ = checkpoints("llama", "fp8 block")
    with caplog.at_level(logging.WARNING, "rhizome"):
        make_engine(quantized)
    assert any("were expanded" in record.message for record in caplog.records)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_made_up_weights_need_only_the_configuration(checkpoints: Checkpoints, tmp_path: Path, method: str) -> None:
    case = {"awq": "awq 32", "gptq": "gptq v1 32", "fp8": "fp8 block",
            "compressed-tensors": "compressed-tensors int8"}[method]  # fmt: skip
    shutil.copy(checkpoints("mixtral", case)[0] / "config.json", tmp_path)
    first, second = (
        Driver(make_engine(tmp_path, load_format="dummy")).generate([prompt(9)], 3) for _ in range(2)
    )  # fmt: skip
    assert first == second


def test_a_tensor_of_a_wrong_shape_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized, _ = checkpoints("llama", "awq 32")
    config = json.loads((quantized / "config.json").read_text())
    shutil.copytree(quantized, tmp_path / "wrong")
    config["quantization_config"]["group_size"] = 64
    (tmp_path / "wrong/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"down_proj.qzeros is \[8, 16\], config.json wants \[4, 16\]"):
        make_engine(tmp_path / "wrong")


def test_a_missing_scale_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized, _ = checkpoints("llama", "awq 32")
    shutil.copytree(quantized, tmp_path / "less")
    weights = load_file(quantized / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.scales"]
    save_file(weights, tmp_path / "less/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"missing: layers\.1\.mlp\.up_proj\.scales"):
        make_engine(tmp_path / "less")


def test_rounding_to_8_bit_floats_is_refused_on_a_cpu(checkpoints: Checkpoints) -> None:
    _, meant = checkpoints("llama", "awq 32")
    config = WorkerConfig(model_path=str(meant), quantization="fp8", device="cpu")
    with pytest.raises(ConfigError, match="--quantization fp8 is of no use on a CPU"):
        build_engine(config, "worker-0-test", Log(logging.getLogger("rhizome"), {}))
