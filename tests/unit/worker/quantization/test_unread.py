"""Tensors of quantized checkpoints that are skipped, and those that are not."""

from __future__ import annotations

import pytest

from services.worker.quantization.unread import Unread


@pytest.mark.parametrize(
    "name",
    ["self_attn.k_scale", "self_attn.v_scale", "self_attn.q_scale", "self_attn.k_zero_point", "self_attn.kv_scale",
     "self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale", "self_attn.attn.k_scale", "self_attn.qkv_proj.v_scale",
     "self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale", "self_attn.prob_output_scale"],
)  # fmt: skip
def test_scales_of_keys_and_values_are_skipped_and_counted(name: str) -> None:
    unread = Unread()
    assert unread(f"layers.11.{name}")
    assert unread.cache_scales == 1


@pytest.mark.parametrize(
    "name",
    ["layers.0.mlp.up_proj.input_scale", "layers.0.mlp.experts.3.down_proj.input_scale", "lm_head.input_scale",
     "layers.0.self_attn.o_proj.input_zero_point", "layers.0.mlp.up_proj.activation_scale",
     "layers.0.mlp.up_proj.output_scale", "visual.blocks.0.attn.qkv.weight"],
)  # fmt: skip
def test_scales_of_activations_and_what_encodes_images_are_skipped(name: str) -> None:
    unread = Unread()
    assert unread(name)
    assert unread.cache_scales == 0


@pytest.mark.parametrize(
    "name",
    ["layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight_scale", "layers.0.self_attn.k_proj.weight_zero_point",
     "layers.0.self_attn.k_proj.scales", "layers.0.self_attn.q_norm.weight", "layers.0.mlp.up_proj.input_global_scale",
     "layers.0.self_attn.k_proj.bias", "layers.0.mlp.up_proj.weight_scale_inv"],
)  # fmt: skip
def test_what_a_model_needs_is_not_skipped(name: str) -> None:
    assert not Unread()(name)
