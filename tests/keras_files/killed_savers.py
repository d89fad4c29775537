"""Processes that save are killed with SIGKILL: the old or the new file must be there, whole, and nothing else for long.

    python killed_savers.py TEMPLATE FOLDER every      killed before and after each call of the system, and in a write
    python killed_savers.py TEMPLATE FOLDER 200        killed 200 times, at random times
    python killed_savers.py TEMPLATE FOLDER together   not killed: three processes save to one path at once

FOLDER must be empty. Each saver is a fork of this process, which does not use JAX's threads: its arrays are numpy's.
"""

import fcntl
import os
import pathlib
import random
import signal
import sys
import time

import jax
import numpy as np

import optax_kadam as ok
from optax_kadam.keras_files import _save, _whole_file

_save._CHUNK = 1000  # Bytes, so that a small model takes many writes.
TEMPLATE, FOLDER, MODE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
TARGET = FOLDER / TEMPLATE.name
# h5py lets the bytes of a `.h5` depend on what was in it before, where no reader looks.
SAVED_INTO = TEMPLATE if TARGET.suffixes == [".h5"] else TARGET


def trainings(count):
    """Return trainings of the template's model, which differ in every array and in the learning rate."""
    training = ok.load_keras(TEMPLATE)
    params, state = training.restore({path: training.variables[path] for path in training.mu or ()})
    trees = jax.tree.map(np.asarray, (params, state))
    return [jax.tree.map(lambda leaf, by=by: leaf + leaf.dtype.type(by), trees) for by in range(count)]


def save(training):
    ok.save_keras(TARGET, *training, template=SAVED_INTO)


def written(training):
    save(training)
    return TARGET.read_bytes()


def forked(act):
    """Run `act` in a process of its own, and return its number."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        act()
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def was_killed(pid):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def kill_at(point):
    """Let this process be killed at the `point`th of the points before and after each call of the system."""
    passed = 0

    def pass_point():
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def between_points(function):
        def called(*args, **kwargs):
            pass_point()
            result = function(*args, **kwargs)
            pass_point()
            return result

        return called

    for module, names in {
        os: ("open", "fsync", "replace", "chmod", "close", "unlink", "fstat"),
        fcntl: ("flock",),
        pathlib.Path: ("unlink",),
    }.items():
        for name in names:
            setattr(module, name, between_points(getattr(module, name)))
    write = between_points(_whole_file._File.write)

    def write_twice(self, data):
        half = len(data) // 2
        return write(self, data[:half]) + write(self, data[half:])

    _whole_file._File.write = write_twice


def judge(old, new):
    """Raise if the target is neither of the two, or if the next save leaves more than it; return what was found."""
    found, left = TARGET.read_bytes(), len(os.listdir(FOLDER)) - 1
    assert found in (old, new) and left <= 1, (len(found), os.listdir(FOLDER))
    assert written(first) == old and os.listdir(FOLDER) == [TARGET.name], os.listdir(FOLDER)
    return found == new, left


def report(results):
    new, left = (sum(numbers) for numbers in zip(*results, strict=True))
    print(f"{len(results)} kills: {len(results) - new} old files, {new} new files, {left} leftovers, all removed")


def kill_everywhere(old, new):
    results = []
    while was_killed(forked(lambda: (kill_at(len(results) + 1), save(second)))):
        results.append(judge(old, new))
    report(results)


def kill_at_random(old, new, count):
    start = time.monotonic()
    was_killed(forked(lambda: save(second)))
    longest, results, generator = time.monotonic() - start, [], random.Random(0)
    while len(results) < count:
        pid = forked(lambda: save(second))
        time.sleep(generator.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        was_killed(pid)
        results.append(judge(old, new))
    report(results)


def save_together(count=30):
    several = trainings(3)
    possible = [written(training) for training in several]
    running = {forked(lambda training=training: [save(training) for _ in range(count)]) for training in several}
    found = []
    while running:
        found.append(possible.index(TARGET.read_bytes()))
        ended = {pid: status for pid, status in (os.waitpid(pid, os.WNOHANG) for pid in running) if pid}
        assert not any(ended.values()), ended
        running -= set(ended)
    assert os.listdir(FOLDER) == [TARGET.name], os.listdir(FOLDER)
    changes = sum(a != b for a, b in zip(found, found[1:], strict=False))
    print(f"{len(several) * count} saves: {len(found)} whole files were read, {changes} times another than before")


TARGET.write_bytes(TEMPLATE.read_bytes())
first, second = trainings(2)
if MODE == "together":
    save_together()
else:
    old, new = written(first), written(second)
    assert written(first) == old
    if MODE == "every":
        kill_everywhere(old, new)
    else:
        kill_at_random(old, new, int(MODE))
