"""The models that benchmarks train, the same on every side."""

VOCABULARY = 50257
GPT = {
    "tiny": {"layers": 2, "hidden_dim": 64, "heads": 4, "sequence_length": 32},
    "30M": {"layers": 6, "hidden_dim": 384, "heads": 6, "sequence_length": 256},
    "124M": {"layers": 12, "hidden_dim": 768, "heads": 12, "sequence_length": 512},
    # embedding and head are next to nothing: two or four stages of it are equal
    "blocks": {"layers": 8, "hidden_dim": 384, "heads": 6, "sequence_length": 256},
}
VIT = {
    "vit": {
        "input_shape": (32, 32, 3), "classes": 10, "patch": 4, "layers": 6, "hidden_dim": 192,
        "heads": 3,
    }
}  # fmt: skip
RESNET = {"resnet18": {"input_shape": (32, 32, 3), "classes": 10}}
BATCH = {
    "tiny": 8,
    "30M": 8,
    "124M": 2,
    "blocks": 8,
    "vit": 64,
    "resnet18": 64,
}  # samples a replica


def vocabulary(model: str) -> int:
    return 64 if model == "blocks" else VOCABULARY


def positions(model: str) -> int:
    """Of a sample; a ResNet's is an image."""
    if model in GPT:
        return GPT[model]["sequence_length"]
    if model in RESNET:
        return 1
    height, width, _ = VIT[model]["input_shape"]
    return height // VIT[model]["patch"] * (width // VIT[model]["patch"])
