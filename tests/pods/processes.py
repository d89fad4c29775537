"""`train.py` and `train_tables.py` run in processes of their own, and comparisons of the states that they leave."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
STRICT = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}

# On other devices the same gradients are added up in another order, and Adam divides a small number by a small one.
# After 12 steps of at most 0.03, on meshes 1x1, 1x2, 1x8, 4x2 and 8x1 with 8 seeds, the largest distance from 2x4 was
# 1.9e-6 in a parameter or its average, and 1.5e-6 of the largest element in a moment. Nothing else differed. With
# tables and 3 seeds it was 1.7e-6 in a row, 5e-7 in a moment, and nothing in the ring or the last visits.
BOUND = 1e-5


class Run:
    """A process of `train.py`, or of another program beside it."""

    def __init__(self, directory, write, mesh="2x4", *more, program="train"):
        self.write, self.log, self.made = write, write.with_suffix(".log"), []
        module = ["-m", f"tests.pods.{program}"]
        command = [sys.executable, *module, "--checkpoints", directory, "--write", write, "--mesh", mesh, *more]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env=clean | STRICT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )

    def steps(self):
        """Yield the numbers of the steps as they are made, and keep them in `made`. Gloo's own lines are skipped."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if step := re.fullmatch(r"step (\d+)\n", line):
                self.made.append(int(step[1]))
                yield self.made[-1]

    def state(self):
        """Wait for the end and return what was written."""
        for _ in self.steps():
            pass
        code = self.process.wait()
        assert code == 0, f"exit code {code} after steps {self.made}\n{self.log.read_text()}"
        with np.load(self.write) as arrays:
            return dict(arrays)

    def reaches(self, step):
        """Wait until a step is made."""
        assert any(made >= step for made in self.steps()), f"ended before step {step}\n{self.log.read_text()}"

    def freeze(self):
        """Stop the process where it is, wait for that, and return whether it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        return os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED)[1])

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        """End the process as the loss of its machine would, and assert that nothing else ended it before."""
        self.process.kill()
        code = self.process.wait()
        assert code == -signal.SIGKILL, f"exit code {code}\n{self.log.read_text()}"


@contextlib.contextmanager
def running(*runs, seconds=600):
    """Yield the runs, or the only one, and end them after the block, or after `seconds` at the latest."""

    def kill_all():
        for run in runs:
            run.process.kill()

    timer = threading.Timer(seconds, kill_all)
    timer.start()
    try:
        yield runs if len(runs) > 1 else runs[0]
    finally:
        timer.cancel()
        kill_all()
        for run in runs:
            run.process.communicate()


def two_processes(directory, writes, mesh="2x4", *more):
    """Start the two processes of one training, which `running` ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Run(directory, write, mesh, "--processes", 2, "--process", i, "--port", port, *more)
        for i, write in enumerate(writes)
    ]


def assert_same(actual, expected):
    """Assert that two states are the same bits."""
    assert actual.keys() == expected.keys()
    bits = [name for name in actual if actual[name].tobytes() != expected[name].tobytes()]
    assert not bits, f"not the same bits: {bits}"


def assert_near(actual, expected):
    """Assert that two states are those of one training on different devices: counts and learning rate exactly."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        scale = 0
        if name.startswith("0.") or ".average." in name or ".values." in name:
            scale = 1
        elif any(f".{moment}." in name for moment in ("mu", "nu", "nu_max", "gradient_norm")):
            scale = abs(want).max()
        np.testing.assert_allclose(actual[name], want, rtol=0, atol=BOUND * scale, err_msg=name)
