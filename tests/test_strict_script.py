"""Under a strict type checker, a user's script has no error that comes from the types of this package."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("strict_script.py")
THEIRS = ("jax.", "optimizer.")  # JAX and Flax leave parts of the types of these functions unknown.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_a_strict_type_checker_finds_nothing_wrong(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    settings = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False}  # optax has no `py.typed`.
    settings["extraPaths"] = [str(pathlib.Path(__file__).parents[1])]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    lines, errors = SCRIPT.read_text().splitlines(), []
    for found in report["generalDiagnostics"]:
        line, column = found["range"]["start"].values()
        is_theirs = found.get("rule") == "reportUnknownMemberType" and lines[line][column:].startswith(THEIRS)
        if not is_theirs:
            errors.append(f"line {line + 1}: {found['message']}")
    assert not errors, "\n".join(errors)
