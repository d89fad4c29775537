"""Object graphs of TensorFlow checkpoints are read, of kinds that the recorded files do not have."""

import numpy as np
import pytest

from optax_kadam.keras_files._contents import Hints
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Checkpoint, Node
from optax_kadam.keras_files.layouts._graphs import graph_contents


def checkpoint(root):
    """Build a checkpoint of nested dicts: a leaf is (name, number); `slots` in a dict lists (variable, slot, array)."""
    nodes, tensors, known = [], {}, {}

    def add(item, path=()):
        if id(item) in known:
            return known[id(item)]
        known[id(item)] = index = len(nodes)
        nodes.append(None)
        if isinstance(item, dict):
            children = {name: add(child, (*path, name)) for name, child in item.items() if name != "slots"}
            slots = [
                (add(variable), slot, add(array, (str(array),))) for variable, slot, array in item.get("slots", [])
            ]
            nodes[index] = Node(children, None, None, slots)
        else:
            name, number = item
            key = "/".join((*path, ".ATTRIBUTES", "VARIABLE_VALUE"))
            dtype = np.dtype(np.int64 if name.endswith("iter") else np.float32)
            shape = () if name.endswith("iter") else (1,)
            tensors[key] = LazyArray(shape, dtype, lambda: np.full(shape, number, dtype))
            nodes[index] = Node({}, name, key, [])
        return index

    add(root)
    return Checkpoint(tensors, nodes)


def listed(items):
    return {str(index): item for index, item in enumerate(items)}


def tf_keras(slot_names):
    momentums, velocities = ([(name, 10 * i + j) for j, name in enumerate(slot_names)] for i in (1, 2))
    return {"_iterations": ("iter", 3), "_momentums": listed(momentums), "_velocities": listed(velocities)}


def read(root, config=None, optimizer="optimizer"):
    contents = graph_contents(checkpoint(root), Hints(config, optimizer=optimizer))
    numbers = {variable.path: variable.array.read().item() for variable in contents.variables}
    moments = [array.read().item() for array in contents.slots.mu] if contents.slots else None
    return contents.generation, numbers, moments


def layered():
    """Return a model with a weight of its own, and a layer that has two sublayers and, between them, its own weight."""
    inner = {"kernel": ("layer/kernel", 2.0)}
    layer = {"first": inner, "scale": ("layer/scale", 1.0), "then": {"kernel": ("layer/kernel", 3.0)}}
    return {"own": ("own", 4.0), "layer": layer, "seed_generator": {"state": ("state", 9.0)}}


NAMES = ["layer/scale", "layer/kernel", "layer/kernel", "own"]
NUMBERS = {"layer/scale:0": 1.0, "layer/kernel:0": 2.0, "layer/kernel:0#2": 3.0, "own:0": 4.0}


def test_variables_of_one_name_are_told_apart_by_the_order_of_the_model():
    for prefix in ("Adam/m/", "m/", "My/m/Adam/m/"):
        root = {"model": layered(), "optimizer": tf_keras([prefix + name for name in NAMES])}
        assert read(root) == ("tf_keras", NUMBERS, [10, 11, 12, 13])
    root["optimizer"] = tf_keras(["Adam/m/" + name for name in [*NAMES[1:], NAMES[0]]])
    with pytest.raises(ValueError, match="Received: 2 variables named 'layer/kernel'. Save the model as a SavedModel"):
        read(root)


def test_a_model_that_is_the_root_or_lists_its_variables_is_read():
    model = layered() | {"optimizer": tf_keras(["Adam/m/" + name for name in NAMES])}
    del model["own"]
    model["optimizer"] = tf_keras(["Adam/m/" + name for name in NAMES[:3]])
    model["root"] = model
    assert read(model)[1] == {path: NUMBERS[path] for path in list(NUMBERS)[:3]}
    model = layered()
    layer = model["layer"]
    order = [layer["then"]["kernel"], layer["scale"], model["own"], layer["first"]["kernel"]]
    names = ["Adam/m/layer/kernel", "Adam/m/layer/scale", "Adam/m/own", "Adam/m/layer/kernel"]
    model |= {"variables": listed(order), "optimizer": tf_keras(names)}
    assert list(read(model)[1].values()) == [3.0, 1.0, 4.0, 2.0]


def test_legacy_slots_follow_the_model():
    model = layered()
    layer = model["layer"]
    variables = [model["own"], layer["then"]["kernel"], layer["scale"], layer["first"]["kernel"]]
    slots = [(v, slot, (f"Adam/{v[0]}/{slot}", 10 + v[1])) for slot in ("v", "m") for v in variables]
    optimizer = {"iter": ("Adam/iter", 5), "slots": slots}
    assert read({"model": model, "optimizer": optimizer}) == ("legacy", NUMBERS, [11, 12, 13, 14])
    with pytest.raises(ValueError, match="Every variable must have the same slots. Received: no mu for 'layer/kernel'"):
        read({"model": model, "optimizer": optimizer | {"slots": slots[:-1]}})
    with pytest.raises(ValueError, match="one of Adam's: m, v, vhat. Received: 'momentum'"):
        read({"model": model, "optimizer": optimizer | {"slots": [(variables[0], "momentum", ("x", 0))]}})


def test_keras_3_names_the_variables_that_it_trains():
    model = layered()
    optimizer = tf_keras(["adam/a_momentum", "adam/b_momentum"])
    optimizer["_trainable_variables"] = listed([model["own"], model["layer"]["scale"]])
    optimizer["_learning_rate"] = ("adam/learning_rate", 0.5)
    generation, numbers, moments = read({"model": model, "optimizer": optimizer})
    assert (generation, list(numbers)[:2], moments) == ("keras3", ["own", "layer/scale"], [10, 11])
    assert len(numbers) == 4
    slots = [(f"adam/{name}_{slot}", i) for i, name in enumerate("ab") for slot in ("momentum", "velocity")]
    beside = [optimizer["_iterations"], optimizer["_learning_rate"]]
    older = optimizer | {"_momentums": {}, "_velocities": {}, "_variables": listed([*beside, *slots])}
    assert read({"model": model, "optimizer": older}) == (generation, numbers, [0, 1])
    optimizer["_trainable_variables"] = listed([model["own"]])
    with pytest.raises(ValueError, match="Received: 1 variables, 2 of mu, 2 of nu"):
        read({"model": model, "optimizer": optimizer})


def test_what_is_not_one_training_is_refused():
    model, optimizer = layered(), tf_keras(["Adam/m/" + name for name in NAMES])
    with pytest.raises(ValueError, match=r"Received: 'Adam/m/own'. Save the model with it"):
        read({"optimizer": tf_keras(["Adam/m/own"])})
    with pytest.raises(ValueError, match="step count, mu and nu. Received: no step count, 4 of mu, 4 of nu"):
        read({"model": model, "optimizer": {name: kept for name, kept in optimizer.items() if name != "_iterations"}})
    with pytest.raises(ValueError, match="must be numbered from 0"):
        read({"model": model, "optimizer": optimizer | {"_momentums": {"1": ("m/own", 0.0)}}})
    assert read({"model": model})[2] is None
    with pytest.raises(ValueError, match="one that is called 'Nadam', without a configuration"):
        read({"model": model, "optimizer": tf_keras(["Nadam/m/" + name for name in NAMES])})


def test_one_of_several_optimizers_is_read_by_its_name():
    """As in a GAN. What another one holds is not looked at."""
    model, other = layered(), tf_keras(["Adam/m/own"])
    other["_momentums"]["0"] = ("Adam/m/own", 77)
    scale = {"step_counter": ("iter", 1), "dynamic_scale": ("scale", 8.0), "inner_optimizer": other}
    both = {"model": model, "a": tf_keras(["Adam/m/" + name for name in NAMES]), "b": scale}
    assert read(both, optimizer="a")[2] == [10, 11, 12, 13]
    assert read(both, optimizer="b")[2] == [77]
    message = r"Received: optimizer='optimizer', and 2 of the names a, inner_optimizer. Say which: .*optimizer='a'"
    with pytest.raises(ValueError, match=message):
        read(both)
    with pytest.raises(ValueError, match="must hold one loss scale. Received: 2 of them. Save the optimizer that"):
        read(both | {"c": {"loss_scale": {"current_loss_scale": ("s", 2.0), "good_steps": ("iter", 1)}}}, optimizer="b")
    legacy = {"iter": ("Adam/iter", 5), "slots": [(model["own"], slot, ("Adam/own/" + slot, 6.0)) for slot in "mv"]}
    assert read(both | {"b": legacy}, optimizer="a")[2] == [10, 11, 12, 13]
    assert read(both | {"b": legacy}, optimizer="b") == ("legacy", NUMBERS, [6])


def test_the_scale_of_tf_keras_is_read():
    scale = {"current_loss_scale": ("s", 8.0), "good_steps": ("iter", 4)}
    root = {"net": {"own": ("own", 4.0)}, "opt": {"loss_scale": scale, "_optimizer": tf_keras(["Adam/m/own"])}}
    slots = graph_contents(checkpoint(root), Hints()).slots
    assert slots.dynamic_scale.read() == 8.0 and slots.step_counter.read() == 4


def test_a_list_of_variables_may_skip_the_numbers_of_tables():
    """TensorFlow 2.21 numbers the tables of a vocabulary too, in the `variables` of a SavedModel."""
    kernel = ("dense/kernel", 2.0)
    model = {"layer": {"kernel": kernel}, "variables": {"3": kernel, "11": ("dense/bias", 1.0)}}
    assert read(model)[1] == {"dense/kernel:0": 2.0, "dense/bias:0": 1.0}


def test_a_loss_scale_is_no_part_of_the_model():
    scale = {"step_counter": ("iter", 1), "dynamic_scale": ("scale", 8.0), "inner_optimizer": tf_keras(["Adam/m/own"])}
    assert read({"net": {"own": ("own", 4.0)}, "opt": scale})[1] == {"own:0": 4.0}


def test_slots_of_a_variable_outside_the_model_are_refused():
    slots = [(("x", 1.0), slot, (slot, 2.0)) for slot in "mv"]
    with pytest.raises(
        ValueError, match="A slot must be of a variable of the model. Received: one of 'x'. Save the model"
    ):
        read({"model": layered(), "optimizer": {"iter": ("Adam/iter", 5), "slots": slots}})
