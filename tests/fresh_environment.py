"""A Python environment beside this one, into which packages are installed as a user installs them.

It sees this environment's dependencies, and nothing that is installed here editably, so that layersync is in it only as
the wheel that was installed there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "layersync")
"""What a wheel of layersync is built from."""
PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one upside down: 0 is no isolation (pypa/pip#5735)
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""Packages are installed of what is here; data may be fetched, as a user's would be."""


class Environment:
    """An environment in ``folder``, with layersync installed from a wheel."""

    def __init__(self, folder: Path):
        self.python = folder / "bin" / "python"
        venv.create(folder, with_pip=False, symlinks=True)
        self.packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (self.packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        self.variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RANK")}
        self.variables |= {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        source = folder / "source"
        source.mkdir()
        for name in SOURCES:
            kind = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            kind(ROOT / name, source / name)
        self.install(*self.wheels([source], folder / "own-wheel"))

    def wheels(self, sources: Sequence[Path], into: Path) -> list[Path]:
        """Build the packages in ``sources``, in copies of them: a build leaves files behind."""
        copies = [into.parent / f"{into.name}-of" / source.name for source in sources]
        for source, copy in zip(sources, copies, strict=True):
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*"))
        self.run(self.python, "-m", "pip", "wheel", "--quiet", "--wheel-dir", into, *copies, variables=PIP)
        built = sorted(into.glob("*.whl"))
        assert len(built) == len(sources), built
        return built

    def install(self, *wheels: Path) -> None:
        """Install wheels."""
        self.run(self.python, "-m", "pip", "install", "--quiet", *wheels, variables=PIP)

    def run(
        self, *command: object, cwd: Path = ROOT.parent, status: int = 0, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, which has to end with ``status``; its output as text."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=self.variables | dict(variables or {}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def layersync(self, *arguments: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """The console script of the environment."""
        return self.run(self.python.parent / "layersync", *arguments, cwd=cwd, status=status)
