"""A folded context changes what is kept, not what is predicted."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from nas.errors import InputError
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.folding import cross_attentions


def test_a_folded_network_predicts_the_same_for_its_context_and_ignores_text(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    network, context = CompactUNet.of(unet), torch.randn(1, 5, 24)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    before = network(x, t, context.expand(2, -1, -1)).sample
    inner = [attention.to_k.out_features for attention in cross_attentions(network)]
    n = sum(parameter.numel() for parameter in network.parameters())
    saved = network.fold_context(context)
    torch.testing.assert_close(network(x, t, torch.zeros(2, 1, 24)).sample, before)
    assert saved.params == sum(2 * width * (24 - 5) for width in inner) == n - sum(parameter.numel() for parameter in network.parameters())
    assert saved.macs == sum(2 * 5 * 24 * width for width in inner)
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(CompactUNet.from_pretrained(tmp_path)(x, t, torch.zeros(2, 1, 24)).sample, before)
    with pytest.raises(InputError, match="folded context already"):
        network.fold_context(context)


def test_a_context_needs_a_token(shallow: UNet2DConditionModel) -> None:
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        CompactUNet.of(shallow).fold_context(torch.zeros(1, 0, 24))
