"""The trees of parameters that steps are measured on."""

Shapes = dict[str, tuple[int, ...]]


def one_leaf(elements: int) -> Shapes:
    """Return a single array."""
    return {"leaf": (elements,)}


def resnet_50() -> Shapes:
    """Return the 161 leaves of a ResNet-50, of 25.6M parameters."""
    shapes: Shapes = {}

    def convolution(name: str, size: int, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"] = (size, size, inputs, outputs)
        shapes[f"{name}/scale"] = shapes[f"{name}/bias"] = (outputs,)

    convolution("stem", 7, 3, 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            if block == 0:
                convolution(f"{name}/shortcut", 1, inputs, 4 * width)
            convolution(f"{name}/reduce", 1, inputs, width)
            convolution(f"{name}/middle", 3, width, width)
            convolution(f"{name}/expand", 1, width, 4 * width)
            inputs = 4 * width
    return shapes | {"head/kernel": (inputs, 1000), "head/bias": (1000,)}


def transformer(layers: int = 12, width: int = 768, tokens: int = 30_522) -> Shapes:
    """Return the leaves of a transformer, by default 196 of BERT-base's sizes, of 109M parameters."""
    shapes: Shapes = {"tokens": (tokens, width), "positions": (512, width)}
    shapes |= {"norm/scale": (width,), "norm/bias": (width,)}
    for layer in range(layers):
        for name in ("query", "key", "value", "out"):
            shapes |= {f"layer{layer}/{name}/kernel": (width, width), f"layer{layer}/{name}/bias": (width,)}
        for name, (inputs, outputs) in {"up": (width, 4 * width), "down": (4 * width, width)}.items():
            shapes |= {f"layer{layer}/{name}/kernel": (inputs, outputs), f"layer{layer}/{name}/bias": (outputs,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"layer{layer}/{name}/scale": (width,), f"layer{layer}/{name}/bias": (width,)}
    return shapes
