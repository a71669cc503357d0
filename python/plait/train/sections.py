"""The tables of a config as frozen dataclasses: every key, its type, range, default and meaning.

What says "unset" may be left out and then means what is said there.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from plait.train.options import ConfigError, option

# --- [model]: one table a kind ---


@dataclass(frozen=True, kw_only=True)
class GPT:
    kind: Literal["gpt"] = "gpt"
    layers: int = option("blocks", low=1)
    hidden_dim: int = option("width between the blocks", low=1)
    heads: int = option("attention heads; they divide hidden_dim", low=1)
    sequence_length: int = option("tokens a sample", low=1)
    mlp_dim: int | None = option("width inside the MLP", low=1, unset="4 x hidden_dim")
    dropout: float = option("share of elements dropped in training", 0.0, low=0, below=1)
    tied: bool = option("the head shares the weights of the token embedding", True)


@dataclass(frozen=True, kw_only=True)
class Llama:
    kind: Literal["llama"] = "llama"
    layers: int = option("blocks", low=1)
    hidden_dim: int = option("width between the blocks", low=1)
    heads: int = option("attention heads; they divide hidden_dim", low=1)
    sequence_length: int = option("tokens a sample", low=1)
    kv_heads: int | None = option("heads of keys and values", low=1, unset="as many as heads")
    mlp_dim: int | None = option(
        "width inside the MLP", low=1, unset="8/3 x hidden_dim, to the next multiple of 32"
    )
    rope_base: float = option("base of the rotary positions' wavelengths", 10000.0, above=1)


@dataclass(frozen=True, kw_only=True)
class ResNet:
    kind: Literal["resnet"] = "resnet"
    blocks: tuple[int, ...] = option("residual blocks of each group", (2, 2, 2, 2), low=1)
    width: int = option("channels of the first group; each further one doubles them", 64, low=1)
    stem_stride: int = option("stride of the first convolution; 2 halves the images", 1, low=1)


@dataclass(frozen=True, kw_only=True)
class ViT:
    kind: Literal["vit"] = "vit"
    layers: int = option("blocks", low=1)
    hidden_dim: int = option("width between the blocks", low=1)
    heads: int = option("attention heads; they divide hidden_dim", low=1)
    patch: int = option("side of a patch in pixels; it divides the images' sides", 4, low=1)
    mlp_dim: int | None = option("width inside the MLP", low=1, unset="4 x hidden_dim")
    dropout: float = option("share of elements dropped in training", 0.0, low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class MLP:
    kind: Literal["mlp"] = "mlp"
    layers: int = option("pairs of linear layers", 2, low=1)
    hidden_dim: int = option("width of every layer", low=1)


@dataclass(frozen=True)
class Custom:
    """kind "package.module:function": a function that returns a list of LayerSpec. The table's
    other keys are its keyword arguments."""

    kind: str
    arguments: dict[str, Any]


Model = GPT | Llama | ResNet | ViT | MLP | Custom

# --- [data]: one table a kind ---


@dataclass(frozen=True, kw_only=True)
class Text:
    kind: Literal["text"] = "text"
    path: str = option('a text file, a folder of them, or "python-stdlib"')
    vocabulary: int = option("tokens of the byte-level BPE that is trained on it", low=257)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    kind: Literal["tokens"] = "tokens"
    path: str = option("a file of token ids: .npy, or raw little-endian integers")
    vocabulary: int = option("every token id is below it", low=2)
    dtype: Literal["uint16", "uint32", "uint8", "int32", "int64"] | None = option(
        "integers of a raw file", unset='as "dtype" in the .json of the same name says'
    )
    held_out: str | None = option("another such file, to evaluate on", unset="the last 20th")


@dataclass(frozen=True, kw_only=True)
class Images:
    kind: Literal["images"] = "images"
    path: str = option(
        'IDX files or pictures by class in a folder, an .npz, "fashion-mnist" or "digits"'
    )
    image_size: int = option(
        "side in pixels that pictures are scaled and cut to; 0: none", 0, low=0
    )


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    kind: Literal["synthetic"] = "synthetic"
    samples: int = option("samples in an epoch", 65536, low=1)
    vocabulary: int | None = option("for models of tokens", low=2, unset="no tokens")
    input_shape: tuple[int, ...] | None = option(
        "for models of images, (height, width, channels)", low=1, unset="no images"
    )
    classes: int | None = option("labels of the images", low=1, unset="no images")


Data = Text | Tokens | Images | Synthetic

# --- the other tables ---


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int = option("length of the run; the schedule ends there", low=1)
    batch: int = option("samples a step, over all replicas", low=1)
    microbatch: int | None = option(
        "samples a replica passes at once",
        low=1,
        unset="all of its own, less in a pipeline; a data grain's with batch norm",
    )
    precision: Literal["bfloat16", "float32"] = option(
        "storage of weights and activations; sums are float32", "bfloat16"
    )
    recompute: Literal["none", "layer"] = option(
        "run each layer again in backward: less memory, a third more time", "none"
    )
    schedule: Literal["one_f_one_b", "gpipe"] = option(
        "order of microbatches in the pipeline", "one_f_one_b"
    )
    sequence_parallel: bool = option(
        "split activations over the tensor axis between its layers too", False
    )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    kind: Literal["adamw"] = "adamw"
    learning_rate: float = option("after warm-up", 1e-3, above=0)
    betas: tuple[float, float] = option("decay of the two moments", (0.9, 0.95), low=0, below=1)
    epsilon: float = option("added to the root of the second moment", 1e-8, above=0)
    weight_decay: float = option("of weights of two or more axes", 0.1, low=0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "of the learning rate, after warm-up", "constant"
    )
    warmup_steps: int = option("steps of linear warm-up", 0, low=0)
    final: float | None = option(
        "share of learning_rate that it falls to, one step after the last",
        low=0,
        unset="0.1 for cosine, 0 for linear",
    )
    clip: float | None = option("largest norm of the gradient", above=0, unset="no clipping")


@dataclass(frozen=True, kw_only=True)
class SGD:
    kind: Literal["sgd"] = "sgd"
    learning_rate: float = option("after warm-up", 1e-2, above=0)
    momentum: float = option("share of the last step's direction", 0.9, low=0, below=1)
    weight_decay: float = option("of weights of two or more axes", 0.0, low=0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "of the learning rate, after warm-up", "constant"
    )
    warmup_steps: int = option("steps of linear warm-up", 0, low=0)
    final: float | None = option(
        "share of learning_rate that it falls to, one step after the last",
        low=0,
        unset="0.1 for cosine, 0 for linear",
    )
    clip: float | None = option("largest norm of the gradient", above=0, unset="no clipping")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the mesh axes; `layout = "2x2x1"` is data x tensor x pipeline."""

    data: int | None = option("replicas", low=1, unset="ranks / (tensor x pipeline)")
    tensor: int = option("shards of every large matrix", 1, low=1)
    pipeline: int = option("groups of layers", 1, low=1)
    zero: Literal[0, 1] = option("1: each replica keeps its share of the optimizer's state", 0)

    @property
    def ranks(self) -> int | None:
        """How many ranks it asks for; None where data is left out."""
        return None if self.data is None else self.data * self.tensor * self.pipeline

    def resolve(self, ranks: int) -> "Layout":
        """The same with data filled in. ConfigError if it does not multiply to the ranks."""
        shards = self.tensor * self.pipeline
        if self.data is None and ranks % shards:
            raise ConfigError(
                f"layout: tensor x pipeline = {self.tensor} x {self.pipeline} does not divide "
                f"{ranks} ranks: start a multiple of {shards} ranks, or change layout"
            )
        if self.ranks is not None and self.ranks != ranks:
            raise ConfigError(
                f'layout = "{self}" needs {self.ranks} ranks, there are {ranks}: '
                f"start {self.ranks}, change layout, or leave layout.data out"
            )
        return dataclasses.replace(self, data=ranks // shards)

    def __str__(self) -> str:
        return f"{self.data or '*'}x{self.tensor}x{self.pipeline}"


@dataclass(frozen=True, kw_only=True)
class Grains:
    """Leaves of the sums over the batch and over sharded dimensions (docs/numerics.md)."""

    data: int = option("at least the layout's data size, at most the batch", low=1)
    tensor: int = option("at least the layout's tensor size; divides the heads", low=1)


@dataclass(frozen=True, kw_only=True)
class Numerics:
    grains: Grains | Literal["auto", "layout"] = option(
        "leaves of the sums; the same ones give the same bits at every layout", "auto"
    )
    check_every: int = option(
        "steps between comparisons of the replicas' bits, and before each checkpoint; 0: never",
        100,
        low=0,
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every: int = option("steps between checkpoints; 0: only at the end", 0, low=0)
    keep: int = option("newest checkpoints that stay", 3, low=1)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    every: int = option("steps between evaluations on held-out data; 0: only at the end", 0, low=0)
    batches: int | None = option("batches of an evaluation", low=1, unset="all held-out data")
