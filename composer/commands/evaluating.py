"""What ``evaluate`` does: adherence, distributions, prompts, counting things, and boxes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.commands.groups import (
    DataOptions,
    DistributionOptions,
    MachineOptions,
    PromptOptions,
    SamplingOptions,
    ThingOptions,
)
from composer.data.refusals import summarise
from composer.decomposition import Decomposer
from composer.evaluation import boxes, counting, distribution
from composer.evaluation.adherence import Evaluation
from composer.evaluation.prompts import answer, read_prompts, write_report
from composer.evaluation.samples import open_sample
from composer.evaluation.tally import Part
from composer.prior import Prior
from composer.prior.taking import prior_for
from composer.scenes.things import load_judge
from composer.storage.files import write_json
from composer.storage.pretrained import locate
from composer.terminal import advancing, bar, note, say
from decomposers import Agreement

PATIENT = {"speed_estimate_period": 3600}
"""A bar's remaining time is averaged over more than the default 30 s, since a batch may take longer."""


@dataclass(frozen=True)
class Measuring:
    """One call of ``evaluate``; for its fields see `commands.measure.evaluate`."""

    model: str
    sample: DataOptions
    plugins: Sequence[str]
    distributions: DistributionOptions = field(default_factory=DistributionOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    things: ThingOptions = field(default_factory=ThingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def run(self) -> None:
        """Measures, then prints and writes the results."""
        about: dict[str, Any] = {"seed": self.sample.seed, "precision": self.machine.precision or "fp32"}
        about |= {"sampling": self.sampling.options.to_dict()} | ({"prior": self.prior.sha256} if self.prior else {})
        about["autoguidance"] = self.cascade.weaker and self.cascade.weaker.sha256
        if self.prompts.prompts is not None:
            self._measure_prompts(self.prompts.prompts, about)
        elif self.things.things is not None:
            self._count_things(self.things.things, about)
        elif self.things.boxes:
            self._measure_boxes(about)
        else:
            self._measure_images(about)

    @cached_property
    def cascade(self) -> Cascade:
        """The model."""
        return self.machine.load(self.model, self.plugins, self.sampling.autoguidance)

    @cached_property
    def prior(self) -> Prior | None:
        """The prior that is named, if it suits the model."""
        return self._prior_for(self.cascade)

    def _prior_for(self, cascade: Cascade) -> Prior | None:
        name = self.sample.prior
        return None if name is None else prior_for(cascade, name, {"caption"}, self.plugins, self.machine.allow_network)

    def _caption_reader(self) -> Decomposer:
        clip = self.distributions.clip
        return distribution.joint_reader(self.cascade) if clip is None else Agreement(weights=clip)

    def _measure_images(self, about: dict[str, Any]) -> None:
        """Adherence and distributions."""
        asked, cascade, wanted = self.sample, self.cascade, self.distributions
        first, last = cascade.stages[0], cascade.stages[-1]
        samples = [open_sample(asked.data, asked.count, first.size, asked.min_side)]
        about |= {"model": cascade.sha256, "data": asked.data, "count": asked.count}
        if "adherence" in wanted.metrics and (wanted.sums is not None or wanted.part != (1, 1)):
            raise ValueError("--sums and --part are for fid, kid and clip: leave adherence out of --metrics")
        table, texts = dict[str, Any](), list[str]()
        others = [metric for metric in wanted.metrics if metric != "adherence"]
        features = distribution.features_of(cascade, wanted.features) if {"fid", "kid"} & set(others) else None
        reader = self._caption_reader() if "clip" in others else None
        if self.prior is not None and "caption" not in samples[0].read([0]):
            raise ValueError(f"--prior draws the semantics of captions, and there are none in {asked.data}")
        with bar(transient=True, **PATIENT) as progress:
            task = progress.add_task("drawing")
            shared: dict[str, Any] = {"seed": asked.seed, "rows": asked.rows, "prior": self.prior}
            shared["progress"] = partial(progress.advance, task)
            if "adherence" in wanted.metrics:
                evaluation = Evaluation(cascade, samples[0], **shared, options=self.sampling.options)
                total = asked.count * len(evaluation.scored) if asked.alone else evaluation.count()
                progress.update(task, total=total)
                adherence = evaluation.measure_alone() if asked.alone else evaluation.measure()
                table |= adherence.json()
                texts.append(adherence.markdown())
            if others:
                if last is not first:
                    samples.append(open_sample(asked.data, asked.count, last.size, asked.min_side))
                whole = SampleOptions(until=last.name) | self.sampling.options
                evaluation = Evaluation(cascade, samples[-1], **shared, options=whole)
                progress.reset(task, total=asked.count)
                same = about | {"metrics": sorted(others), "features": wanted.features, "clip": wanted.clip}
                part = Part(*wanted.part, wanted.sums, same | {"rows": asked.rows})
                found = distribution.measure(others, evaluation, features, reader, part)
                if found is None:
                    missing = ", ".join(f"{number}/{part.parts}" for number in part.missing())
                    say(f"part {part.number}/{part.parts} is summed up in {part.folder}; not finished yet: {missing}")
                    return
                table["distribution"] = found
                texts.append(distribution.markdown(found))
        if self.prior is not None:
            texts.append(f"Captions that came without semantics went through the prior {asked.prior}.\n")
        refused = {path: why for sample in samples if sample.ledger for path, why in sample.ledger.listed.items()}
        if refused:
            note(f"note: {summarise(refused.values())}")
        say(*texts)
        self._write(table, about)

    def _write(self, table: dict[str, Any], about: dict[str, Any]) -> None:
        if self.sample.json is not None:
            write_json(self.sample.json, table | {"about": about})

    def _count_things(self, name: str, about: dict[str, Any]) -> None:
        """Counts what pictures of one to three things show."""
        judge = load_judge(locate(name, wanted="a judge of things", who="evaluate --things"))
        asked, captions = self.sample, self.things.captions
        with advancing("drawing", asked.count * len(counting.NUMBERS)) as advance:
            found = counting.count_things(
                self.cascade, judge, asked.count, captions, asked.seed, asked.rows, advance, self.sampling.options
            )
        say(counting.markdown(found))
        things = {number: asdict(row) for number, row in found.items()}
        about |= {"model": self.cascade.sha256, "captions": captions, "count": asked.count}
        self._write({"things": things}, about)

    def _measure_boxes(self, about: dict[str, Any]) -> None:
        """Looks for objects in their boxes."""
        asked = self.sample
        sample = open_sample(asked.data, asked.count, self.cascade.stages[0].size, asked.min_side)
        evaluation = Evaluation(self.cascade, sample, asked.seed, asked.rows, options=self.sampling.options)
        with advancing("drawing", boxes.count_boxes(evaluation)) as advance:
            evaluation.progress = advance
            found = boxes.measure_boxes(evaluation)
        say(boxes.markdown(found))
        about |= {"model": self.cascade.sha256, "data": asked.data, "count": asked.count}
        self._write({"boxes": {label: asdict(one) for label, one in found.items()}}, about)

    def _measure_prompts(self, file: str, about: dict[str, Any]) -> None:
        """Draws and scores a list of prompts, with one model or two."""
        wanted, other = self.prompts, self.prompts.against
        models = {Path(self.model).resolve().name: self.cascade}
        if other is not None:
            name = Path(other).resolve().name
            name = f"{name} (2)" if name in models else name
            models[name] = self.machine.load(other, self.plugins)
            self._prior_for(models[name])  # which refuses a model that it does not suit
        asked, reader = read_prompts(file), self._caption_reader()
        seed, rows = self.sample.seed, self.sample.rows
        with advancing("drawing", len(models) * len(asked) * wanted.n, **PATIENT) as advance:
            answers = {
                name: answer(model, asked, reader, wanted.n, seed, rows, advance, self.sampling.options, self.prior)
                for name, model in models.items()
            }
        found = write_report(wanted.out, asked, answers, reader, seed)
        found["about"] = about | {"models": {name: model.sha256 for name, model in models.items()}}
        write_json(self.sample.json or wanted.out / "prompts.json", found)
        say((wanted.out / "prompts.md").read_text(encoding="utf-8"))
        say(f"open {wanted.out / 'index.html'}" + (f", vote in {wanted.out / 'vote.html'}" if other else ""))
