"""Which layers the words of `targets` name, over what libraries call them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlkd_cli.builders.adapters.any_tower import _attach_changes
from vlkd_cli.builders.adapters.methods.low_rank import IA3
from vlkd_cli.builders.adapters.targets import find_parts
from vlkd_cli.errors import RecipeError


def names(network: nn.Module, *targets: str) -> list[str]:
    return [part.module for part in find_parts(network, list(targets) or None, None)]


def test_a_stem_of_several_convolutions_is_not_part_of_the_blocks() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    network = ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=4, image_size=32, width=8)
    found = names(network)
    assert len(found) == 12 and all(name.startswith("layer") for name in found)


def test_layers_that_weight_channels_are_convolutions_and_no_mlp() -> None:
    from timm.layers import SEModule
    from torchvision.ops import SqueezeExcitation

    for squeeze in (SEModule(8), SqueezeExcitation(8, 4)):
        network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3), squeeze))
        assert names(network) == ["1.0", "1.1.fc1", "1.1.fc2"]
        with pytest.raises(RecipeError, match="'up' names nothing"):
            names(network, "up")


def test_the_projection_next_to_queries_is_that_of_the_output_whatever_it_is_called() -> None:
    from timm.models.coat import FactorAttnConvRelPosEnc
    from timm.models.levit import Attention
    from timm.models.vision_transformer import ParallelScalingBlock
    from torchvision.models.maxvit import RelativePositionalMultiHeadAttention

    coat = FactorAttnConvRelPosEnc(8, 2, shared_crpe=nn.Identity())
    assert names(nn.ModuleList([coat]), "o") == ["0.proj"]
    levit = nn.ModuleList([Attention(8, key_dim=2, num_heads=2, attn_ratio=3)])
    (part,) = find_parts(levit, ["q"], None)
    assert part.module == "0.qkv.linear" and part.rows is not None
    assert part.rows.equal((torch.arange(20) % 10) < 2)
    parallel = nn.ModuleList([ParallelScalingBlock(8, 2)])
    assert names(parallel) == ["0.in_proj", "0.attn_out_proj"]
    (down,) = find_parts(parallel, ["down"], None)
    assert down.module == "0.mlp_out_proj" and down.inputs
    maxvit = nn.ModuleList([RelativePositionalMultiHeadAttention(8, 4, 16)])
    assert names(maxvit) == ["0.to_qkv", "0.merge"]


SMALL = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}


def encoder(model_type: str, **changes: object) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    marks = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    if model_type == "modernbert":
        marks |= {"cls_token_id": 0, "sep_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**SMALL, **marks, **changes})
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("model_type", ["deberta", "bloom", "gpt_neox"])
def test_rows_of_text_encoders_are_those_taken_for_queries_keys_and_values(model_type: str) -> None:
    network = encoder(model_type)
    layer = network.get_submodule(names(network, "q")[0])
    rows = {word: find_parts(network, [word], None)[0].rows for word in "qkv"}
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    def output(noisy: str) -> torch.Tensor:
        layer.load_state_dict(before)
        with torch.no_grad():
            for word, factor in (("q", 0.0), (noisy, -3.0)):
                for tensor in layer.state_dict().values():
                    tensor[rows[word]] *= factor
            return network(torch.arange(4, 10)[None]).last_hidden_state

    # Without queries keys do not matter.
    torch.testing.assert_close(output("k"), output("q"))
    assert not torch.allclose(output("v"), output("q"))


@pytest.mark.parametrize(
    ("model_type", "o", "up", "down"),
    [
        ("t5", "SelfAttention.o", "DenseReluDense.wi", "DenseReluDense.wo"),
        ("modernbert", "attn.Wo", "mlp.Wi", "mlp.Wo"),
        ("bloom", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        ("phi3", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    ],
)
def test_output_projections_and_mlps_of_text_encoders_have_their_words(
    model_type: str, o: str, up: str, down: str
) -> None:
    network = encoder(model_type, **({"num_layers": 1} if model_type == "t5" else {}))
    network = network.get_encoder() if model_type == "t5" else network
    for word, end in {"o": o, "up": up, "down": down}.items():
        (found,) = names(network, word)
        assert found.endswith(end)


def test_ia3_never_leaves_out_keys_and_values_without_a_word() -> None:
    falcon = encoder("falcon")
    with pytest.raises(RecipeError, match="'h.0.self_attention.query_key_value' holds queries"):
        _attach_changes(falcon, IA3(), None, "t")


def test_ia3_scales_biases_that_lie_next_to_a_weight_divided_by_heads() -> None:
    plain, network = encoder("deberta"), encoder("deberta")
    _attach_changes(network, IA3(), None, "t")
    own = network.get_submodule("encoder.layer.0.attention.self")
    other = plain.get_submodule("encoder.layer.0.attention.self")
    biased, factors = torch.linspace(1, 2, 16), torch.linspace(0.5, 2, 16).view(4, 1, 4)
    with torch.no_grad():
        own.parametrizations.v_bias.original.copy_(biased)
        # Queries, keys and values of each head in turn.
        own.in_proj.parametrizations.weight[0].vlkd_f.view(4, 3, 4)[:, 2:] = factors
        other.v_bias.copy_(biased * factors.flatten())
        other.in_proj.weight.view(4, 3, 4, 16)[:, 2] *= factors.view(4, 4, 1)
        ids = torch.arange(4, 10)[None]
        torch.testing.assert_close(network(ids)[0], plain(ids)[0])
