"""scripts/bootstrap with tools that only pretend: what it does once, what it does not do twice, what it says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "awk bash cat chmod cp cut df dirname env flock grep mkdir mktemp printf readlink rm sha256sum tee"
UV = """#!/bin/bash
echo "uv $*" >> "$CALLS"
[ -z "${FAILS:-}" ] || { echo "$FAILS" >&2; exit 1; }
if [ "$1" = venv ]; then
  for venv; do :; done
  mkdir -p "$venv/bin"; printf '#!/bin/sh\\nexit 0\\n' > "$venv/bin/python"; chmod +x "$venv/bin/python"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but what the bootstrap reads, and a folder of tools."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap", tmp_path / "scripts")
    (tmp_path / "requirements.lock").write_text("one==1\ntwo==2\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in [
        "bash",
        "cat",
        "cp",
        "cut",
        "df",
        "dirname",
        "awk",
        "env",
        "flock",
        "grep",
        "mkdir",
        "mktemp",
        "printf",
        "readlink",
        "rm",
        "sha256sum",
        "tee",
        "chmod",
        "cd",
    ]:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    (tools / "uv").write_text(UV)
    (tools / "python3.11").write_text("#!/bin/sh\nexit 0\n")
    for tool in ("uv", "python3.11"):
        (tools / tool).chmod(0o755)
    return tmp_path


def bootstrap(checkout: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    home = checkout / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": str(checkout / "tools"), "HOME": str(home), "CALLS": str(checkout / "calls"), **more}
    return subprocess.run(
        [str(checkout / "scripts" / "bootstrap")], env=environment, capture_output=True, text=True, timeout=30
    )


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines() if (checkout / "calls").exists() else []


def test_it_installs_once_and_again_only_when_the_lock_changes(checkout: Path) -> None:
    first = bootstrap(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "", "stdout belongs to the command that follows"
    assert [call.split()[1:3] for call in calls(checkout)] == [["venv", "--quiet"], ["pip", "sync"], ["pip", "install"]]
    again = bootstrap(checkout)
    assert (again.returncode, again.stderr, len(calls(checkout))) == (0, "", 3)
    (checkout / "requirements.lock").write_text("one==2\n")
    assert bootstrap(checkout).returncode == 0
    assert [call.split()[1:3] for call in calls(checkout)[3:]] == [["pip", "sync"], ["pip", "install"]]


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("error: No space left on device (os error 28)", "the disk is full"),
        ("error: client error: dns error: failed to lookup address", "the package registry cannot be reached"),
        ("error: something else", "what the installer said stands above"),
    ],
)
def test_a_failure_ends_in_one_line_that_says_what_to_do(checkout: Path, fails: str, says: str) -> None:
    failed = bootstrap(checkout, FAILS=fails)
    assert failed.returncode == 1
    assert says in failed.stderr.splitlines()[-1]
    assert bootstrap(checkout).returncode == 0, "and the next run makes up for it"


def test_without_a_python_it_says_which_is_needed(checkout: Path) -> None:
    for tool in ("uv", "python3.11"):
        (checkout / "tools" / tool).unlink()
    failed = bootstrap(checkout)
    assert failed.returncode == 1
    assert "Python 3.11 or 3.12 is needed" in failed.stderr.splitlines()[-1]


def test_two_at_once_install_once(checkout: Path) -> None:
    environment = {"PATH": str(checkout / "tools"), "HOME": str(checkout), "CALLS": str(checkout / "calls")}
    both = [subprocess.Popen([str(checkout / "scripts" / "bootstrap")], env=environment) for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert len(calls(checkout)) == 3
    assert os.access(checkout / ".venv" / "manta-stamp", os.R_OK)
