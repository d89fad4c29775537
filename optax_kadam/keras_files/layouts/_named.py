"""The whole-model `.h5` of every generation holds arrays under the names of their variables.

`/model_weights` holds a group for each layer, and `/optimizer_weights` the list of the optimizer; the attribute
`weight_names` has their order. The name of a slot is made of the name of its variable:

    keras3      adam/model_dense_kernel_momentum, ..._velocity, ..._velocity_hat, ..._average, ..._gradient_accumulator
    tf_keras    Adam/m/dense/kernel:0, Adam/v/..., Adam/vhat/..., Adam/average/...; no prefix inside a loss scale
    legacy      Adam/dense/kernel/m:0, .../v:0, .../vhat:0; more in front inside a loss scale

Source: `keras/src/legacy/saving/legacy_h5_format.py` (Keras 3.15); `tf_keras/src/saving/legacy/hdf5_format.py` (2.21).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from optax_kadam._generations import Generation
from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import (
    KERAS3_SLOTS,
    Contents,
    Slots,
    Variable,
    check_shapes,
    missing_slot,
    with_guessed_trainability,
)
from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files.layouts._claims import check_claimed

_DAMAGED = "The file is damaged, or no Keras wrote it."
_ATTRIBUTES = ("layer_names", "weight_names", "backend", "keras_version", "model_config", "training_config")
_TF_SLOTS = {"m": "mu", "v": "nu", "vhat": "nu_max", "average": "average"}
_SCALARS = {
    "iteration": "iterations",
    "iteration:0": "iterations",
    "iter:0": "iterations",
    "learning_rate": "learning_rate",
    "step_counter": "step_counter",
    "dynamic_scale": "dynamic_scale",
}


def named_contents(root: Group, config: Mapping[str, object] | None) -> Contents:
    """Return the contents of the `.h5` file with this root group. `config` takes the place of the one in the file."""
    weights = root.at("model_weights") or root
    scope = _scope(root)
    named = [
        (name if "/" in name or scope is None else f"{scope}{layer}/{name}", _at(group, name))
        for layer, group in _layers(weights)
        for name in _names(group, "weight_names")
    ]
    variables = [Variable(name, array) for name, array in dict(reversed(named)).items()][::-1]
    config = config or _saved_config(root)
    optimizer = root.at("optimizer_weights")
    version = str(root.attrs.get("keras_version") or weights.attrs.get("keras_version") or "")
    generation = parse(config).generation if config else "keras3" if version.startswith("3") else "tf_keras"
    names = _names(optimizer, "weight_names") if optimizer else []
    arrays = [(name, _at(optimizer, name)) for name in names] if optimizer else []
    check_claimed(root, (array for _, array in named + arrays), _ATTRIBUTES)
    is_untrained = not any(array.shape for _, array in arrays) and len(arrays) <= len(_SCALARS)
    if is_untrained:  # A model that was compiled has an optimizer without moments.
        variables = [with_guessed_trainability(variable) for variable in variables]
        return Contents(generation, config, variables, None, "named")
    slots, order = _slots(arrays, [variable.path for variable in variables], generation)
    by_path = {variable.path: variable for variable in variables}
    check_shapes([by_path[path] for path in order], slots.mu, _DAMAGED)
    trained = set(order)
    others = [Variable(v.path, v.array, is_trainable=False) for v in variables if v.path not in trained]
    # Keras's order of the trainable variables is that of the slots.
    return Contents(generation, config, [*(by_path[path] for path in order), *others], slots, "named")


def _layers(weights: Group) -> Iterator[tuple[str, Group]]:
    """Yield the names and the groups of the layers.

    Keras 3.0 leaves a file in which layers are missing, where it fails to write two variables of one name in a layer.
    """
    for name in _names(weights, "layer_names"):
        group = weights.at(name)
        if group is None:
            raise ValueError(
                f"A `.h5` file must hold each layer that it lists. Received: none for {name!r}. {_DAMAGED} "
                "If Keras raised an error when it saved the model, save it as `.keras`."
            )
        yield name, group
    if top := weights.at("top_level_model_weights"):
        yield "top_level_model_weights", top


def _scope(root: Group) -> str | None:
    """Return what stands before the names of layers in the paths of variables; None if their names are paths.

    Keras 3.0 writes `kernel` for `sequential/dense/kernel`, in each layer. Its slots are named after the whole path.
    """
    text = root.attrs.get("model_config")
    if not (str(root.attrs.get("keras_version", "")).startswith("3.") and isinstance(text, str)):
        return None
    model = parse_json(text.encode(), "model_config")
    config = model.get("config")
    if model.get("class_name") != "Sequential" or not isinstance(config, dict):
        return ""
    return f"{config.get('name')}/"


def _names(group: Group, attribute: str) -> list[str]:
    """Return a list of names. Keras cuts one that is larger than an attribute may be into numbered pieces."""
    if attribute in group.attrs:
        pieces = [group.attrs[attribute]]
    else:
        pieces = []
        while f"{attribute}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
    if not pieces or not all(isinstance(piece, list) for piece in pieces):
        received = f"{attribute}={pieces or None!r}"
        raise ValueError(f"A group of a `.h5` file must have a list `{attribute}`. Received: {received}. {_DAMAGED}")
    return [name for piece in pieces for name in piece]


def _at(group: Group, name: str) -> LazyArray:
    groups, _, last = name.rpartition("/")
    found = group.at(groups)
    if found is None or last not in found.arrays:
        raise ValueError(f"An array must stand under its name. Received: no array at {name!r}. {_DAMAGED}")
    return found.arrays[last]


def _saved_config(root: Group) -> Mapping[str, object] | None:
    text = root.attrs.get("training_config")
    if not isinstance(text, str):
        return None
    config = parse_json(text.encode(), "training_config").get("optimizer_config")
    return config if isinstance(config, dict) else None


def _slots(
    arrays: Sequence[tuple[str, LazyArray]], paths: Sequence[str], generation: Generation
) -> tuple[Slots, list[str]]:
    """Return the slots, and the paths of their variables in the order of the optimizer."""
    slot_of = {"keras3": _keras3_slots, "tf_keras": _tf_keras_slots, "legacy": _legacy_slots}[generation](paths)
    scalars: dict[str, LazyArray] = {}
    found: dict[str, dict[str, LazyArray]] = {}
    for name, array in arrays:
        kind = _SCALARS.get(name.rsplit("/", 1)[-1]) if not array.shape else None
        if kind:
            # A loss scale writes its own before those of the optimizer inside it: the last one counts.
            scalars[kind] = array
            continue
        slot, path = slot_of(name)
        if path in found.setdefault(slot, {}):
            raise ValueError(f"A slot must be stored once. Received: {name!r} twice. {_DAMAGED}")
        found[slot][path] = array
    missing = missing_slot(found)
    if "iterations" not in scalars or not found or missing:
        received = "no slots" if not missing else f"no {missing[0]} for {missing[1]!r}"
        received = received if "iterations" in scalars else "no step count"
        raise ValueError(
            "An optimizer must hold its step count and the same slots for each variable. "
            f"Received: {received}. {_DAMAGED}"
        )
    order = list(found["mu"])
    lists = {slot: [slots[path] for path in order] for slot, slots in found.items()}
    others = (scalars.get(name) for name in ("step_counter", "dynamic_scale"))
    return Slots.from_lists(scalars["iterations"], scalars.get("learning_rate"), lists, *others), order


_SlotOf = Callable[[str], tuple[str, str]]


def _keras3_slots(paths: Sequence[str]) -> _SlotOf:
    flat: dict[str, str] = {}
    for path in paths:
        if flat.setdefault(path.replace("/", "_"), path) != path:
            raise ValueError(
                f"The names of slots must tell variables apart. Received: {path!r} and "
                f"{flat[path.replace('/', '_')]!r}, whose slots have one name. Save the model as `.keras`."
            )

    def slot_of(name: str) -> tuple[str, str]:
        last = name.rsplit("/", 1)[-1]
        for ending, slot in KERAS3_SLOTS.items():
            if last.endswith(ending) and (path := flat.get(last.removesuffix(ending))):
                return slot, path
        raise _unknown(name)

    return slot_of


def _tf_keras_slots(paths: Sequence[str]) -> _SlotOf:
    known = set(paths)

    def slot_of(name: str) -> tuple[str, str]:
        parts = name.split("/")
        for index, part in enumerate(parts):
            if part in _TF_SLOTS and (path := "/".join(parts[index + 1 :])) in known:
                return _TF_SLOTS[part], path
        raise _unknown(name)

    return slot_of


def _legacy_slots(paths: Sequence[str]) -> _SlotOf:
    known = set(paths)

    def slot_of(name: str) -> tuple[str, str]:
        *parts, slot = name.removesuffix(":0").split("/")
        for index in range(len(parts)):
            if slot in _TF_SLOTS and (path := f"{'/'.join(parts[index:])}:0") in known:
                return _TF_SLOTS[slot], path
        raise _unknown(name)

    return slot_of


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"An optimizer's array must be the slot of one of the model's variables. Received: {name!r}. "
        "Only Adam and AdamW can be carried over. If it is one, save the model as `.keras`."
    )
