"""Writes gpt2.npz: a tiny random GPT-2 of Hugging Face transformers, its logits, loss, gradients.

Weights and gradients are stored under plait's names and layouts. It needs torch and transformers,
which plait does not: pip install torch transformers; python tests/golden/make_gpt2.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH, SAMPLES = 2, 32, 4, 101, 13, 3
PARTS = {
    "ln_1": "norm1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
ENDS = {"wte": "embed.tokens", "wpe": "embed.positions", "ln_f": "output.norm"}
COLUMN_PARALLEL = {"attn.c_attn", "mlp.c_fc"}


def plait_name(name: str) -> tuple[str, bool]:
    """(plait's name, whether its matrix is transposed) of one of transformers' parameters.

    GPT-2's Conv1D is (in, out), as is a row-parallel weight; a column-parallel one is (out, in).
    """
    path, kind = name.removeprefix("transformer.").rsplit(".", 1)
    if path in ENDS:
        return f"{ENDS[path]}.{kind}", False
    _, block, part = path.split(".", 2)
    return f"blocks.{block}.{PARTS[part]}.{kind}", part in COLUMN_PARALLEL and kind == "weight"


def main() -> None:
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=True,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    for name, parameter in model.named_parameters():  # the tied head is not among them
        is_norm_weight = "ln_" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm_weight else 0.0, 0.2)

    tokens = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH))
    targets = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH))
    targets[0, :5] = -100  # masked; samples have unequal counts
    targets[2, 7] = -100
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()

    targets[targets < 0] = -1
    arrays: dict[str, np.ndarray] = {
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
    }
    for name, parameter in model.named_parameters():
        key, transposed = plait_name(name)
        for kind, values in (("weight", parameter.detach()), ("gradient", parameter.grad)):
            arrays[f"{kind}/{key}"] = np.ascontiguousarray(
                (values.T if transposed else values).numpy()
            )
    assert all(x.dtype in (np.float32, np.int32) for x in arrays.values())
    np.savez_compressed(Path(__file__).with_name("gpt2.npz"), **arrays)


if __name__ == "__main__":
    main()
