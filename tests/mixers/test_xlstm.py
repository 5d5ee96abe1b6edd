"""mLSTM and sLSTM layers against whole DNA-xLSTM models of the authors, assembled here out of the mixers alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.mixers.mlstm import MLSTM
from statezoo.zoo.mixers.slstm import SLSTM
from torch.nn import functional as F

ORACLES = os.environ.get("STATEZOO_ORACLES")
needs_oracles = pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")


def read(name):
    saved = np.load(Path(ORACLES) / f"{name}.npz")
    weights = {key.removeprefix("backbone."): torch.from_numpy(saved[key]) for key in saved.files if "." in key}
    return torch.from_numpy(saved["x"]), torch.from_numpy(saved["y"]), weights


def norm(x, weight):
    return F.layer_norm(x, x.shape[-1:], 1 + weight, None, 1e-5)


def mlstm_layer(w):
    """An MLSTM with the authors' weights of one block, `w` by their names."""
    layer = MLSTM(32, 4, round_up=False, bias="proj_up.bias" in w)
    own = {}
    for name, tensor in w.items():
        name = name.replace("conv1d.conv.", "conv1d.").replace("mlstm_cell.", "")
        own[name] = tensor
    layer.load_state_dict(own)
    return layer.eval()


def slstm_layer(w):
    """An SLSTM with the authors' weights: their fgate feeds slot i and their igate slot f; R and bias are in order."""
    layer = SLSTM(32, 4)
    own = {
        "conv1d.weight": w["conv1d.conv.weight"], "conv1d.bias": w["conv1d.conv.bias"],
        "igate.weight": w["fgate.weight"], "fgate.weight": w["igate.weight"],
        "zgate.weight": w["zgate.weight"], "ogate.weight": w["ogate.weight"],
        "R": w["slstm_cell._recurrent_kernel_"].view(4, 4, 8, 8).permute(0, 3, 1, 2),
        "bias": w["slstm_cell._bias_"].view(4, 4, 8), "group_norm.weight": w["group_norm.weight"],
    }  # fmt: skip
    layer.load_state_dict(own)
    return layer.eval()


@needs_oracles
@pytest.mark.parametrize("case", ["dna_mlstm_uni", "dna_mlstm_bidir_tied", "dna_slstm_uni"])
def test_equals_the_authors_logits(case):
    tokens, wanted, w = read(case)

    def part(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

    x, made = w["token_embedding.weight"][tokens], mlstm_layer if "mlstm" in case else slstm_layer
    for n in range(2):
        block = part(f"xlstm_block_stack.blocks.{n}.")
        layer = made({k.removeprefix("xlstm."): v for k, v in block.items() if k.startswith("xlstm.")})

        def run(x, block=block, layer=layer):
            with torch.no_grad():
                x = x + layer(norm(x, block["xlstm_norm.weight"])).y
            if "ffn_norm.weight" in block:
                a, b = F.linear(norm(x, block["ffn_norm.weight"]), block["ffn.proj_up.weight"]).chunk(2, -1)
                x = x + F.linear(F.gelu(a) * b, block["ffn.proj_down.weight"])
            return x

        # both directions, weights tied: each pass carries its own skip
        x = run(x) + run(x.flip(1)).flip(1) if "bidir" in case else run(x)
    logits = F.linear(norm(x, w["xlstm_block_stack.post_blocks_norm.weight"]), w["lm_head.weight"])
    assert float((logits - wanted).abs().max()) <= 2e-5


def test_forget_gates_start_as_published():
    layer = MLSTM(32, 4)
    torch.testing.assert_close(layer.fgate.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    first, last = SLSTM(32, 4, layer=0, layers=3).bias[1, 0], SLSTM(32, 4, layer=2, layers=3).bias[1, 0]
    place = torch.arange(8) / 7
    torch.testing.assert_close(first.detach(), 5 - 12 * place**0.3)
    torch.testing.assert_close(last.detach(), 5 - 12 * place**1.6)
