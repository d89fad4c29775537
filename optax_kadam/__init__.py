"""Keras's Adam for JAX: exact to the bit, as optax transformations.

**The optimizers.** `kadam` and `kadamw` take Keras's arguments and are used as any optax transformation is:

    tx = kadamw(learning_rate=schedules.CosineDecay(1e-3, 10_000), clipnorm=1.0)
    state = tx.init(params)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)

`except_names` is a mask for the weight decay; `averaged_params` reads the average of `use_ema=True`;
`dynamic_loss_scale` is Keras's `LossScaleOptimizer`; `schedules` has Keras's six; `zero1_shardings` divides the state
over the data axis of a mesh, and `check_placed` raises where arrays lie otherwise.

**The parts**, for a chain of one's own: `scale_by_kadam`, `clip_by_value`, `clip_by_norm`, `clip_by_global_norm`.

**Keras's files.** `load_keras` reads a training, a `KerasTraining`, `save_keras` writes one; `from_config` and
`to_config` do so with the configuration of an optimizer. `KerasTraining.from_model` reads a live model of Keras's, and
`update_model` writes into it. `suggest_rename` proposes which of Keras's layers is which part of a tree; `conversions`
are ways in which a leaf holds what Keras keeps in another form. `compare` says in a `Comparison` whether two trainings
are the same, and `record` keeps the first steps of Keras's optimizer, to be replayed here.

**Tables.** `RowUpdates` is the gradient of some rows, `value_and_row_grad` takes it, and `add_gradients`,
`scale_gradients` and `global_norm` go over trees that hold it. `deferred_rows` keeps a table whose step costs the rows
that it touches, and `Embeddings` the several tables and features of a model; `check_ids` makes an error of
ids that are padding.
"""

from optax_kadam import conversions as conversions
from optax_kadam import schedules as schedules
from optax_kadam._gradients import RowUpdates as RowUpdates
from optax_kadam._hyperparameter import Hyperparameter as Hyperparameter
from optax_kadam._hyperparameter import Schedule as Schedule
from optax_kadam._kadam import kadam as kadam
from optax_kadam._kadam import kadamw as kadamw
from optax_kadam._masks import except_names as except_names
from optax_kadam._placed import check_placed as check_placed
from optax_kadam._zero1 import zero1_shardings as zero1_shardings
from optax_kadam.config._config import from_config as from_config
from optax_kadam.config._config import to_config as to_config
from optax_kadam.embeddings._deferred import DeferredRows as DeferredRows
from optax_kadam.embeddings._deferred import deferred_rows as deferred_rows
from optax_kadam.embeddings._embeddings import Embeddings as Embeddings
from optax_kadam.embeddings._ids import check_ids as check_ids
from optax_kadam.embeddings._row_gradients import add_gradients as add_gradients
from optax_kadam.embeddings._row_gradients import global_norm as global_norm
from optax_kadam.embeddings._row_gradients import scale_gradients as scale_gradients
from optax_kadam.embeddings._row_gradients import value_and_row_grad as value_and_row_grad
from optax_kadam.embeddings._table import DeferredTable as DeferredTable
from optax_kadam.keras_files._live import update_model as update_model
from optax_kadam.keras_files._save import save_keras as save_keras
from optax_kadam.keras_files._suggest import suggest_rename as suggest_rename
from optax_kadam.keras_files._training import KerasTraining as KerasTraining
from optax_kadam.keras_files._training import load_keras as load_keras
from optax_kadam.keras_files.comparing._compare import compare as compare
from optax_kadam.keras_files.comparing._comparison import Comparison as Comparison
from optax_kadam.keras_files.comparing._record import record as record
from optax_kadam.stages._adam import ScaleByKadamState as ScaleByKadamState
from optax_kadam.stages._adam import scale_by_kadam as scale_by_kadam
from optax_kadam.stages._clip import clip_by_global_norm as clip_by_global_norm
from optax_kadam.stages._clip import clip_by_norm as clip_by_norm
from optax_kadam.stages._clip import clip_by_value as clip_by_value
from optax_kadam.stages._ema import averaged_params as averaged_params
from optax_kadam.stages._loss_scale import dynamic_loss_scale as dynamic_loss_scale

__version__ = "0.1.0"
