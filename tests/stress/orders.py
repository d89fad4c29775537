"""Random models, saved by a live Keras: are the moments those of the right variables, or is the file refused?

    python -m tests.stress.orders --count 500 --seed 0

Each model is made of own layers with attributes in a random order, lists that change, layers that two others share,
Sequential and Functional models, subclasses of both, layers of Keras's own, and frozen ones; few shapes are used, so
that many variables could change places. It is saved as `.keras` and as `.weights.h5`. What is wrong without an error is
printed, and so is a refusal whose remedy does not work.
"""

import argparse
import collections
import os
import pathlib
import random
import tempfile
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import optax_kadam as ok

L = keras.layers
WIDTH = 4


class Own(L.Layer):
    """A layer whose attributes are layers or lists of them, set in a given order and called in another."""

    def __init__(self, parts, own=0, **arguments):
        super().__init__(**arguments)
        self.order = list(parts)
        self.numbers = [self.add_weight(shape=(WIDTH,), name=f"n{i}") for i in range(own)]
        for name, part in parts.items():
            setattr(self, name, part)

    def call(self, x):
        for number in self.numbers:
            x = x + number
        for name in self.order:
            part = getattr(self, name)
            for layer in part if isinstance(part, list) else [part]:
                x = layer(x)
        return x

    def get_config(self):
        return {}


class OwnModel(keras.Model):
    """The same as a model."""

    def __init__(self, parts, **arguments):
        super().__init__(**arguments)
        self.order = list(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    call, get_config = Own.call, Own.get_config
    numbers = ()


class OwnFunctional(keras.Model):
    """A subclass of Functional, whose layers are attributes before."""

    def __init__(self, parts):
        x = inputs = keras.Input((WIDTH,))
        for name, part in parts.items():
            setattr(self, name, part)
        for part in reversed(parts.values()):
            for layer in part if isinstance(part, list) else [part]:
                x = layer(x)
        super().__init__(inputs, x)


class Maker:
    """Makes random models."""

    def __init__(self, seed):
        self.random, self.made = random.Random(seed), []

    def layer(self, depth):
        choice = self.random.choice
        if self.made and self.random.random() < 0.15:
            return choice(self.made)
        kinds = [self.simple] * 3 + [self.own, self.sequential, self.functional][: 3 * (depth > 0)]
        layer = choice(kinds)(depth)
        layer.trainable = self.random.random() > 0.08
        self.made.append(layer)
        return layer

    def simple(self, _):
        choice = self.random.choice
        return choice(
            [
                lambda: L.Dense(WIDTH),
                lambda: L.Dense(WIDTH, use_bias=False),
                lambda: L.BatchNormalization(scale=choice([True, False])),
                lambda: L.LayerNormalization(),
                lambda: L.Dropout(0.1),
                lambda: L.Dense(WIDTH, name=f"b{self.random.randrange(10**9)}"),
            ]
        )()

    def parts(self, depth):
        names = self.random.sample("abcklmnxyz", self.random.randint(1, 3))
        parts = {}
        for name in names:
            if self.random.random() < 0.25:
                parts[name] = [self.layer(depth - 1) for _ in range(self.random.randint(1, 3))]
                if self.random.random() < 0.3:
                    parts[name].reverse()
            else:
                parts[name] = self.layer(depth - 1)
        return parts

    def own(self, depth):
        return Own(self.parts(depth), self.random.randint(0, 2))

    def sequential(self, depth):
        layers = [self.layer(depth - 1) for _ in range(self.random.randint(1, 3))]
        return keras.Sequential([keras.Input((WIDTH,)), *layers])

    def functional(self, depth):
        x = inputs = keras.Input((WIDTH,))
        for _ in range(self.random.randint(1, 3)):
            x = self.layer(depth - 1)(x)
        return keras.Model(inputs, x)

    def model(self):
        kind = self.random.choice(["sequential", "functional", "own", "own functional"])
        if kind in ("sequential", "functional"):
            model = getattr(self, kind)(3)
        else:
            model = {"own": OwnModel, "own functional": OwnFunctional}[kind](self.parts(3))
        model(np.zeros((1, WIDTH), np.float32))
        if self.random.random() < 0.2:
            model.extra = self.layer(0)
            model.extra(np.zeros((1, WIDTH), np.float32))
        return model


def outcome(seed: int, folder: pathlib.Path) -> list[tuple[str, str]]:
    """Return what became of a random model in each format, and why."""
    keras.utils.clear_session()
    found = []
    try:
        maker = Maker(seed)
        model = maker.model()
        if not model.trainable_variables:
            return [("nothing to train", "")]
        model.compile(keras.optimizers.Adam(), "mse")
        model.optimizer.build(model.trainable_variables)
    except (ValueError, AttributeError) as error:  # A Sequential takes no layer twice, and so on.
        return [("Keras refuses", str(error))]
    trained = list(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in [*model.weights, *model.optimizer.variables]:
        if len(variable.shape):
            variable.assign(rng.normal(size=variable.shape))
    if maker.random.random() < 0.1:
        for layer in model.layers:
            layer.trainable = not layer.trainable
    for ending in (".keras", ".weights.h5"):
        path = folder / f"x{ending}"
        try:
            model.save(path) if ending == ".keras" else model.save_weights(path)
        except Exception as error:
            found.append(("Keras refuses", str(error)))
            continue
        for how, arguments in {"alone": {}, "told": {"trainable": trained}}.items():
            try:
                training = ok.load_keras(path, **arguments)
            except ValueError as error:
                found.append((f"{ending} {how}: refused", str(error)))
                continue
            if training.mu is None:
                found.append((f"{ending} {how}: WRONG", "no moments"))
                continue
            pairs = zip(training.mu, training.mu.values(), model.optimizer._momentums, trained, strict=True)
            is_right = all(np.array_equal(mu, m) and np.array_equal(training.variables[p], v) for p, mu, m, v in pairs)
            found.append((f"{ending} {how}: {training.order if is_right else 'WRONG'}", ""))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            for kind, why in outcome(seed, pathlib.Path(folder)):
                counts[kind] += 1
                if "WRONG" in kind or kind.endswith("told: refused"):
                    print(seed, kind, why[:300], flush=True)
    for kind, count in sorted(counts.items()):
        print(f"{count:6}  {kind}")


if __name__ == "__main__":
    main()
