"""Commands that make models: ``export``, ``assemble``; light."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from composer.commands.signature import Value
from composer.commands.values import FIELDS, Data, Guidance, Network, Percentile, Steps, Title
from composer.images.table import escape_markdown
from composer.names import SamplerName
from composer.storage.files import read_text
from composer.storage.finding import find_model
from composer.terminal import note, say


def export(
    run: Path,
    out: Path,
    *,
    name: Title | None = None,
    card: Path | None = None,
    half: bool = False,
    addon: bool = False,
    guidance: Guidance | None = None,
    steps: Steps | None = None,
    percentile: Percentile | None = None,
    sampler: SamplerName | None = None,
    augmentation: Annotated[float, Value(FIELDS["augmentation"], "T")] | None = None,
    temperature: Annotated[float, Value(FIELDS["temperature"], "T")] | None = None,
    top_k: Annotated[int, Value(FIELDS["top_k"], "K")] | None = None,
    carry: Annotated[tuple[Path, ...], Value(Path, "PATH", repeats=True)] = (),
    held_out: Data | None = None,
    layout: Annotated[Literal["composer", "diffusers"], Value(flags=("--as",))] = "composer",
    allow_network: Network = False,
    plugins: Sequence[str],
) -> None:
    """Turn a training run into a model's folder, with the averaged weights; or a model into diffusers' layout.

    Args:
        run: a run's folder, or one of its checkpoints; with --as diffusers, a model's folder
        out: the model's folder
        card: the model card, Markdown (default: the one that is there)
        half: store weights with 16 bits
        addon: of a training with train_only, store only what was trained, and which model it belongs to; that model
            has to be included, on the hub or beside OUT
        guidance: the model's default guidance weight (default 2; by tokens 1; for a prior, as configured)
        steps: the model's default number of sampling steps (default 30; for a prior, as configured)
        percentile: the model's default percentile of dynamic thresholding (default: clip to the valid range)
        sampler: the model's default sampler (default dpmpp_2m)
        augmentation: level, 0 to 1, at which an upsampler corrupts its input by default (default 0)
        temperature: the default temperature of a model that draws by tokens (default 1)
        top_k: how many of the likeliest codes a model that draws by tokens draws from by default (default: all)
        carry: a file or folder that the decomposers need, outside the current folder and the run's: allow copying it
            into the model
        held_out: scenes:SPLIT or a folder of at least 32 images that no training saw, which define chance for results
            (default: Scenes)
        layout: diffusers writes the first stage's network, or a prior, so that the diffusers library loads it; no
            other option counts then

    Examples:
        runs/scenes64 models/mine --card card.md
        models/karlo out/karlo --as diffusers
    """
    if layout == "diffusers":
        _export_diffusers(run, out, plugins)
        return
    from dataclasses import asdict

    import torch

    from composer.cascade.assembling import Addon, carried_files, carry_weights, from_run
    from composer.cascade.cascade import Cascade
    from composer.cascade.parts import Parts
    from composer.cascade.stage import Sampling
    from composer.cascade.token_stage import TokenSampling
    from composer.evaluation.reading import read_held_out, strangers_note
    from composer.networks.exporting import export_autoencoder
    from composer.prior.exporting import export_prior
    from composer.storage.files import replacing_all
    from composer.storage.formats import check_run
    from composer.storage.pretrained import noting_files
    from composer.training.checkpoint import LAST, load_stage

    path = run / "checkpoints" / LAST if run.is_dir() else run
    config, weights = load_stage(path)
    check_run(config)
    sampling = {"guidance": guidance, "steps": steps, "percentile": percentile, "sampler": sampler}
    sampling |= {"augmentation": augmentation, "temperature": temperature, "top_k": top_k}
    given = {key: value for key, value in sampling.items() if value is not None}
    own, dtype = name or out.name, torch.float16 if half else torch.float32
    text = _card(card, out, f"# {escape_markdown(own)}\n")
    within = [Path.cwd(), path.parent, *([run] if run.is_dir() else []), *carry]
    if "prior" in config["model"]["init_args"]:
        if held_out is not None:
            raise ValueError("--held-out is for models that draw: a prior's embeddings are compared with no images")
        spec = export_prior(config, weights, out, own, text, dtype, given, plugins, within, allow_network)
        say(f"prior in {out}", *carried_files(spec))
        return
    by_tokens = "tokens" in config["model"]["init_args"]
    if "autoencoder" in config["model"]["init_args"] and not by_tokens:
        if given or held_out is not None:
            raise ValueError(f"an autoencoder draws nothing: leave out {', '.join(given) or '--held-out'}")
        export_autoencoder(config, weights, out, own, text, dtype, plugins)
        say(f"autoencoder in {out}")
        return
    settings = TokenSampling() if by_tokens else Sampling()
    spec = from_run(config, own, asdict(settings.override(given, "this model")))
    own_weights = {spec["stages"][0]["file"]: weights}
    added = Addon.of(config, spec, weights, given, plugins) if addon else None
    if added is not None:
        spec, own_weights, within = added.spec, added.weights, [*within, added.folder]
    with noting_files() as read:
        cascade = Cascade.from_weights(spec, own_weights, plugins, network=allow_network)
    cascade.strangers = Parts() if held_out is None else read_held_out(cascade, held_out)
    with replacing_all(out) as new:
        cascade.spec = carry_weights(spec, new, plugins, read, within)
        cascade.save(new, text, dtype, added)
    what = "model" if added is None else f"add-on to {added.base['name']}"
    say(f"{what} in {out}", *carried_files(cascade.spec))
    if missing := strangers_note(cascade):
        note(missing)


def _export_diffusers(model: Path, out: Path, plugins: Sequence[str]) -> None:
    from composer.published import export_diffusers

    say(*(f"written: {path}, which diffusers loads" for path in export_diffusers(model, out, plugins=plugins)))


def _card(card: Path | None, out: Path, default: str) -> str:
    """The model card that the user gave, or else the one in the folder, which they may have written."""
    path = card or out / "README.md"
    return read_text(path) if card or path.is_file() else default


def assemble(
    out: Path,
    parts: Annotated[tuple[str, ...], Value(metavar="STAGE=MODEL", nargs="+")],
    *,
    name: Title | None = None,
    card: Path | None = None,
    allow_network: Network = False,
    plugins: Sequence[str],
) -> None:
    """Join models of one stage each into a cascade.

    Args:
        out: the new model's folder
        parts: the stages, from the smallest to the largest
        card: the model card, Markdown (default: the one that is there, or the parts')

    Examples:
        models/mine base=models/mine64 up256=models/mine256
    """
    pairs = [part.partition("=") for part in parts]
    if wrong := [part for part, (stage, _, path) in zip(parts, pairs, strict=True) if not (stage and path)]:
        raise ValueError(f"expected STAGE=MODEL, such as base=models/mine64, found {' '.join(wrong)}")
    models = {stage: find_model(path, allow_network) for stage, _, path in pairs}
    if len(models) < len(pairs):
        raise ValueError(f"expected a different name for each stage, found {' '.join(parts)}")
    from composer.cascade import assembling
    from composer.cascade.cascade import Cascade
    from composer.storage.files import replacing_all
    from composer.storage.folder import STRANGERS_FILE, read_strangers, write_model
    from composer.storage.pretrained import noting_files

    spec, weights = assembling.assemble(models, name or out.name, plugins)
    with noting_files() as read:
        cascade = Cascade.from_weights(spec, weights, plugins, network=allow_network)
    cards = [f"# {escape_markdown(spec['name'])}\n", *(read_text(path / "README.md") for path in models.values())]
    with replacing_all(out) as new:
        spec = assembling.carry_weights(spec, new, plugins, read, [path.resolve() for path in models.values()])
        strangers = read_strangers(next(iter(models.values())))  # results are read at the size of the first stage
        more = {STRANGERS_FILE: strangers} if strangers else {}
        write_model(new, spec, weights | more, _card(card, out, "\n".join(cards)))
    sizes = " -> ".join(str(stage.size) for stage in cascade.stages)
    say(f"model of {len(models)} stages, {sizes} px, in {out}", *assembling.carried_files(spec))
