"""Keras's Adam for JAX: exact to the bit, as optax transformations."""

from optax_kadam import schedules as schedules
from optax_kadam._gradients import RowUpdates as RowUpdates
from optax_kadam._gradients import value_and_row_grad as value_and_row_grad
from optax_kadam._kadam import kadam as kadam
from optax_kadam._kadam import kadamw as kadamw
from optax_kadam._mesh import zero1_shardings as zero1_shardings
from optax_kadam.config._config import from_config as from_config
from optax_kadam.config._config import to_config as to_config
from optax_kadam.embeddings._deferred import DeferredRows as DeferredRows
from optax_kadam.embeddings._deferred import deferred_rows as deferred_rows
from optax_kadam.keras_files._save import save_keras as save_keras
from optax_kadam.keras_files._training import KerasTraining as KerasTraining
from optax_kadam.keras_files._training import load_keras as load_keras
from optax_kadam.stages._adam import ScaleByKadamState as ScaleByKadamState
from optax_kadam.stages._adam import scale_by_kadam as scale_by_kadam
from optax_kadam.stages._clip import clip_by_global_norm as clip_by_global_norm
from optax_kadam.stages._clip import clip_by_norm as clip_by_norm
from optax_kadam.stages._clip import clip_by_norms as clip_by_norms
from optax_kadam.stages._clip import clip_by_value as clip_by_value
from optax_kadam.stages._ema import averaged_params as averaged_params
from optax_kadam.stages._loss_scale import dynamic_loss_scale as dynamic_loss_scale

__version__ = "0.1.0"
