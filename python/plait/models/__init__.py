"""Models as lists of LayerSpec. They know nothing of layouts."""

from plait.models.gpt import gpt
from plait.models.llama import llama
from plait.models.mlp import mlp
from plait.models.resnet import resnet
from plait.models.vit import vit

__all__ = ["gpt", "llama", "mlp", "resnet", "vit"]
