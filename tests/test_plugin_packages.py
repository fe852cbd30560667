"""Plug-ins as a user has them: wheels, installed beside layersync's own, used through its commands.

The packages are those of ``examples/``, and one that ``layersync new-modality`` has just written.
"""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from fresh_environment import ROOT, Environment

from layersync.core.metric import DOMAIN_METRICS

pytestmark = pytest.mark.packages

EXAMPLES = sorted(file.parent for file in (ROOT / "examples").glob("*/pyproject.toml"))
NEW = "newly-written"
SMALL = {
    "train.steps": 2,
    "train.batch_size": 4,
    "optimizer.warmup": 0,
    "backbone.depth": 3,
    "backbone.hidden_size": 32,
    "sample.steps": 2,
    "evaluate.num_samples": 24,
}


def entry_points(group: str) -> list[str]:
    """Names that the packages in ``examples/`` register."""
    projects = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in EXAMPLES]
    return [name for project in projects for name in project.get("entry-points", {}).get(f"layersync.{group}", {})]


MODALITIES = [*entry_points("modalities"), NEW]
REGULARIZERS = entry_points("regularizers") or ["layersync"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All packages in one environment, each from its wheel."""
    folder = tmp_path_factory.mktemp("plugins")
    made = Environment(folder / "environment")
    made.layersync("new-modality", NEW, "--into", folder, cwd=folder)
    made.install(*made.wheels([*EXAMPLES, folder / f"layersync-{NEW}"], folder / "wheels"))
    return made


def small(modality: str, environment: Environment) -> list[str]:
    """Options that make a training of ``quick`` a matter of seconds, scored by the modality's own metrics."""
    (recipe,) = environment.packages.glob(f"*{modality.replace('-', '_')}/recipes/quick.yaml")
    metrics = yaml.safe_load(recipe.read_text())["evaluate"]["metrics"]
    own = [metric for metric in metrics if metric not in DOMAIN_METRICS]
    assert own, f"{recipe} has no metric of its modality"
    settings = SMALL | {"evaluate.metrics": f"[{', '.join(own)}]"}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("modality", [*MODALITIES[:-1], pytest.param(NEW, marks=pytest.mark.slow)])
def test_runs_of_a_modality_are_compared_sampled_and_evaluated(
    modality: str, environment: Environment, tmp_path: Path
) -> None:
    recipe = f"{modality}/quick"
    options = small(modality, environment)
    regularizer = REGULARIZERS[MODALITIES.index(modality) % len(REGULARIZERS)]
    words = ["--variants", f"baseline,{regularizer}", "--seeds", 1, "--jobs", 2, "--out", "comparison", "--json"]
    (domain,) = json.loads(environment.layersync("compare", recipe, *words, *options, cwd=tmp_path).stdout)["domains"]
    assert domain["modality"] == modality and set(domain["variants"]) == {"baseline", regularizer}
    for variant in domain["variants"].values():
        assert [run["status"] for run in variant["runs"]] == ["finished"], variant

    run = tmp_path / "comparison" / domain["variants"][regularizer]["runs"][0]["path"]
    drawn = environment.layersync("sample", run, "--num", 5, "--npz", cwd=tmp_path).stdout.strip()
    assert (tmp_path / drawn / "samples.npz").is_file() and len(list((tmp_path / drawn).iterdir())) > 1
    scores = json.loads(environment.layersync("evaluate", run, "--json", cwd=tmp_path).stdout)["metrics"]
    assert scores and all(math.isfinite(score["value"]) for score in scores.values()), scores


@pytest.mark.timeout(600)
@pytest.mark.parametrize("package", EXAMPLES, ids=lambda package: package.name)
def test_own_tests_of_a_package_pass(package: Path, environment: Environment, tmp_path: Path) -> None:
    shutil.copytree(package / "tests", tmp_path / "tests")
    environment.run(environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)


def test_packages_are_the_installed_ones(environment: Environment, tmp_path: Path) -> None:
    """Nothing of the source tree is imported: layersync and the plug-ins come out of the environment."""
    code = (
        "import importlib.metadata as m, importlib.util as u, layersync; print(layersync.__file__)\n"
        "for group in ('modalities', 'regularizers'):\n"
        "    for point in m.entry_points(group=f'layersync.{group}'):\n"
        "        print(u.find_spec(point.module.partition('.')[0]).origin)\n"
    )
    files = environment.run(environment.python, "-c", code, cwd=tmp_path).stdout.split()
    assert len(files) == 1 + len(MODALITIES) + 3 + len(entry_points("regularizers")) + 2, files
    assert all(Path(file).is_relative_to(environment.python.parent.parent) for file in files), files
