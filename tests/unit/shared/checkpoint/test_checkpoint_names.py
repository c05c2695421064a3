"""Tensors of a file under the names that models know."""

from __future__ import annotations

import pytest
import torch

from shared.checkpoint.checkpoint_names import canonical, of_vision, pieces, spellings

ALL = slice(None)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "layers.3.mlp.experts.17.up_proj.weight"),
        ("model.layers.3.block_sparse_moe.gate.weight", "layers.3.mlp.gate.weight"),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", "layers.3.mlp.experts.0.gate_proj.weight"),
        ("model.layers.3.block_sparse_moe.experts.11.w2.weight", "layers.3.mlp.experts.11.down_proj.weight"),
        ("model.layers.3.block_sparse_moe.experts.7.w3.weight", "layers.3.mlp.experts.7.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_spellings_of_a_name_become_one(key: str, name: str) -> None:
    assert canonical(key) == name
    assert not of_vision(name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("visual.blocks.0.attn.qkv.bias", "visual.blocks.0.attn.qkv.bias"),
        ("model.visual.blocks.0.attn.qkv.bias", "visual.blocks.0.attn.qkv.bias"),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("model.vision_tower.vision_model.pre_layrnorm.bias", "vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", "vision_tower.pre_layrnorm.bias"),
        ("vision_model.pre_layrnorm.bias", "vision_tower.pre_layrnorm.bias"),
        ("multi_modal_projector.linear_1.weight", "projector.0.weight"),
        ("model.multi_modal_projector.linear_2.bias", "projector.2.bias"),
        ("model.mm_projector.0.weight", "projector.0.weight"),
        ("model.mm_projector.2.bias", "projector.2.bias"),
        ("model.mm_projector.weight", "projector.0.weight"),
        ("image_newline", "image_newline"),
        ("model.image_newline", "image_newline"),
    ],
)
def test_what_encodes_images_has_one_spelling_too(key: str, name: str) -> None:
    assert canonical(key) == name
    assert of_vision(name)


@pytest.mark.parametrize("product", ["lm_head", "layers.0.mlp.up_proj", "layers.3.mlp.experts.17.down_proj"])
def test_every_spelling_of_a_product_leads_back_to_it(product: str) -> None:
    known = spellings(product)
    assert known[0] == f"model.{product}"
    assert {product, f"model.language_model.{product}"} < set(known)
    assert {canonical(f"{name}.weight") for name in known} == {f"{product}.weight"}


def test_experts_are_spelled_as_the_first_of_them_were_too() -> None:
    assert "model.layers.3.block_sparse_moe.experts.17.w2" in spellings("layers.3.mlp.experts.17.down_proj")


def test_a_plain_tensor_is_one_piece() -> None:
    (piece,) = pieces("model.layers.0.mlp.down_proj.weight", (4, 6))
    assert (piece.name, piece.shape) == ("layers.0.mlp.down_proj.weight", (4, 6))
    assert piece.index((ALL, slice(2, 5))) == (ALL, slice(2, 5))


def test_a_stack_of_experts_is_one_piece_for_each_of_their_weights() -> None:
    gate_up, down = torch.arange(2 * 6 * 5).view(2, 6, 5), torch.arange(2 * 5 * 3).view(2, 5, 3)
    found = {
        piece.name: (piece.shape, tensor[piece.index(take)])
        for key, tensor, take in (
            ("model.layers.0.mlp.experts.gate_up_proj", gate_up, (slice(1, 3), ALL)),
            ("model.layers.0.mlp.experts.down_proj", down, (ALL, slice(1, 3))),
        )
        for piece in pieces(key, tuple(tensor.shape))
    }
    assert len(found) == 6
    for expert in (0, 1):
        wanted = {
            "gate_proj": ((3, 5), gate_up[expert, 1:3]),
            "up_proj": ((3, 5), gate_up[expert, 4:6]),
            "down_proj": ((5, 3), down[expert, :, 1:3]),
        }
        for part, (shape, values) in wanted.items():
            got_shape, got = found[f"layers.0.mlp.experts.{expert}.{part}.weight"]
            assert got_shape == shape
            assert torch.equal(got, values)


@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 5)])
def test_what_is_named_as_a_stack_and_is_none_stays_whole(shape: tuple[int, ...]) -> None:
    (piece,) = pieces("model.layers.0.mlp.experts.gate_up_proj", shape)
    assert (piece.name, piece.shape) == ("layers.0.mlp.experts.gate_up_proj", shape)
