"""The bars: what they say is left, where they end, and what a terminal shows of them."""

import contextlib
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import numpy as np
import pytest

from optax_kadam.__main__ import main
from optax_kadam.commands import _convert
from optax_kadam.commands._progress import Pace, reporting_growth

from ..helpers import keras_rules

keras = pytest.importorskip("keras")

ROOT = pathlib.Path(__file__).parents[2]


def test_what_is_left_follows_from_the_bytes_and_the_time_since_the_first_hundredth():
    pace = Pace(total=1000)
    assert pace.remaining(now=100.0) is None
    pace.advance(5, now=200.0)  # A slow beginning, which would make it hours.
    assert pace.remaining(now=201.0) is None
    pace.advance(15, now=203.0)
    assert pace.remaining(now=204.0) is None
    pace.advance(180, now=205.0)
    assert pace.remaining(now=205.0) == 800 / 90
    assert pace.remaining(now=207.0) == 800 / 45  # It stands still.
    pace.advance(900, now=208.0)
    assert pace.done == 1000 and pace.remaining(now=300.0) == 0


def test_the_growth_of_a_folder_is_reported(tmp_path):
    (tmp_path / "before").write_bytes(bytes(3))
    counts = []
    with reporting_growth(tmp_path, counts.append):
        (tmp_path / "inside").mkdir()
        (tmp_path / "inside" / "after").write_bytes(bytes(10))
    assert sum(counts) == 10
    with pytest.raises(OSError), reporting_growth(tmp_path, counts.append):
        raise OSError
    assert sum(counts) == 10


@keras_rules()
def test_the_bars_end_where_the_bytes_do(capsys, tmp_path, monkeypatch):
    """Each bar has as many bytes as its work: nothing is compressed, though these numbers could well be."""
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300, name="d")], name="m")
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    for variable in (*model.trainable_variables, *model.optimizer._momentums, *model.optimizer._velocities):
        variable.assign(np.ones(variable.shape))
    model.save(tmp_path / "m.keras")
    told, done = {}, {"reading": 0, "writing": 0}

    @contextlib.contextmanager
    def bars(**totals):
        told.update(totals)
        yield lambda name, count: done.update({name: done[name] + count})

    monkeypatch.setattr(_convert, "bars", bars)
    main(["convert", str(tmp_path / "m.keras"), str(tmp_path / "out")])
    assert told == {"reading": 3 * 4 * 300 * 301, "writing": 3 * 4 * 300 * 301}
    assert done["reading"] == told["reading"]
    assert told["writing"] <= done["writing"] <= 1.05 * told["writing"]


def in_terminal(arguments, columns, folder):
    """Return the lines that a command draws, one after the other, in a terminal of `columns` columns."""
    ours, theirs = pty.openpty()
    ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "optax_kadam", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed.
            while part := os.read(ours, 1 << 16):
                output += part
    os.close(ours)
    assert process.returncode == 0
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()))


def test_convert_shows_both_bars_in_80_columns(tmp_path):
    sample = ROOT / "tests" / "golden" / "files" / "k3j" / "adam.keras"
    (tmp_path / "adam.keras").write_bytes(sample.read_bytes())
    lines = in_terminal(["convert", "adam.keras", "out"], 80, tmp_path)
    assert any(re.fullmatch(r"reading ━+ 2\.5/2\.5 +kB +0:00:00 left *", line) for line in lines)
    assert any(re.fullmatch(r"writing .* (-:--:--|0:00:\d\d) left *", line) for line in lines)
    drawn = [line for line in lines if line.startswith(("reading", "writing"))]
    assert max(map(len, drawn)) <= 80 and lines[-4].startswith("Wrote ")
