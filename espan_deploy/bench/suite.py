"""One benchmark from beginning to end, as one JSON document. The reports show this document and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from espan_deploy import __version__, backends
from espan_deploy.backends.model import ModelFile
from espan_deploy.bench.contenders import AS_TRAINED, Contender, Model
from espan_deploy.bench.costs import Costs, graph_costs, starved_layer
from espan_deploy.bench.environment import BUSY_CORES, CpuUse, environment
from espan_deploy.bench.images import Case, Image, Pair
from espan_deploy.bench.layer_times import LayerTimes, layer_times
from espan_deploy.bench.pictures import Picture, make_picture
from espan_deploy.bench.roofline import Peaks, known_gpu, layer_bytes, layer_limit, model_limit, probe_cpu
from espan_deploy.bench.score import CHALLENGES, Challenge
from espan_deploy.bench.standings import standings
from espan_deploy.bench.statistics import NOISY_SPREAD, Summary, ratio_of_medians, summarise, verdicts
from espan_deploy.bench.truth import compare_with_truth
from espan_deploy.errors import ExportError, InferenceError, InputShapeError
from espan_deploy.graph.complexity import REPORT_SIZE
from espan_deploy.timing import Clock, Measurement, Stop, WarmUpLimits, measure

SCHEMA_VERSION = 1

Document = dict[str, Any]

PROFILE_RUNS = 11

CPU_ENGINES = ("openvino", "onnxruntime", "torch")


@dataclass(frozen=True)
class Settings:
    """What to run. command: as typed, for the report."""

    runs: int = 200
    seconds: float = 10.0
    threads: int | None = None
    challenge: Challenge | None = None
    layers: bool = False
    command: str = ""
    warm_up: WarmUpLimits = field(default_factory=WarmUpLimits)


class Suite:
    """Runs the benchmark; ``document`` grows as it goes, and is whole whenever Ctrl-C ends it.

    shown: images for the page, with their truths where there are any; ``pictures`` holds them upscaled.
    probe: measures this CPU, see :func:`espan_deploy.bench.roofline.probe_cpu`; replaced in tests.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        cases: Sequence[Case],
        settings: Settings,
        *,
        pairs: Sequence[Pair] = (),
        shown: Sequence[tuple[str, Image, Image | None]] = (),
        progress: Callable[[str], None] = lambda _: None,
        clock: Clock = time.perf_counter,
        probe: Callable[..., Peaks] = probe_cpu,
    ) -> None:
        self.contenders, self.cases, self.settings = contenders, cases, settings
        self.pairs, self.shown = pairs, shown
        self.pictures: list[Picture] = []
        self.progress, self.clock, self._probe = progress, clock, probe
        self.models = list({id(c.model): c.model for c in contenders}.values())
        self._costs: dict[tuple[int, int, int], Costs | None] = {}
        self._peaks: dict[str, Peaks] = {}
        self._layer_times: dict[tuple[str, str], LayerTimes] = {}
        self.document: Document = {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "espan-deploy", "version": __version__},
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": settings.command,
            "interrupted": False,
            "settings": {
                "runs": settings.runs,
                "seconds_per_contender": settings.seconds,
                "order": "interleaved: every round runs each contender once, in the order of the list",
                "includes": "bytes in, bytes out: scaling, layout and rounding, transfers to and from a GPU",
                "excludes": "decoding and encoding files; the warm-up",
            },
            "environment": environment(threads=settings.threads),
            "models": [],
            "contenders": [contender.facts() for contender in contenders],
            "cases": [_case_json(case) for case in cases],
            "results": [],
            "quality": None,
            "roofline": [],
            "challenge": None,
            "notes": [],
        }

    def run(self) -> Document:
        """Everything that was asked for. Raises InputShapeError where a model does not take a size."""
        in_torch = {contender.model.name for contender in self.contenders if contender.engine == "torch"}
        left_out = [model.name for model in self.models if in_torch and model.name not in in_torch]
        if left_out:
            self._note(f"not run in PyTorch, for want of their checkpoints: {', '.join(left_out)}")
        try:
            self._check_sizes()
            self._describe_models()
            self._probe_devices()
            self._time()
            self._probe_devices()
            if self.settings.layers:
                self._profile()
            self._look()
            if self.pairs:
                self.document["quality"] = {}
                compare_with_truth(self.contenders, self.pairs, self.progress, self.document["quality"])
        except KeyboardInterrupt:
            self.document["interrupted"] = True
        self._set_limits()
        if self.settings.challenge is not None:
            self.document["challenge"] = self._standings(self.settings.challenge)
        return self.document

    def _check_sizes(self) -> None:
        """Each contender takes the smallest input of each case once: better now than after minutes."""
        for case in self.cases:
            smallest = min(case.inputs, key=lambda image: image.shape[1] * image.shape[2])
            height, width = smallest.shape[1:3]
            for model in self.models:
                starved = starved_layer(model.file, height, width)
                if starved is not None:
                    raise InputShapeError(
                        f"{model.name} does not take {height}x{width}: {starved}",
                        hint="take larger images, or a larger --size",
                    )
            for contender in self.contenders:
                self.progress(f"opening {contender.name}")
                try:
                    contender.runner.infer(smallest)
                except (InferenceError, InputShapeError) as exc:
                    raise InputShapeError(
                        f"{contender.name} does not take {height}x{width}: {exc.message}",
                        hint=exc.hint or "take larger images, or a larger --size",
                    ) from exc

    def _describe_models(self) -> None:
        for model in self.models:
            self.progress(f"counting {model.name}")
            self.document["models"].append(self._model_json(model))

    def _model_json(self, model: Model) -> Document:
        from espan_deploy.networks.catalogue import NETWORKS

        description = model.file.description
        costs = self._costs_of(model.file, REPORT_SIZE, REPORT_SIZE)
        entry = next((entry for entry in NETWORKS if entry.name == description.network), None)
        unfolded = dict(description.unfolded)
        return {
            "name": model.name,
            "file": model.file.path.name,
            "sha256": model.file.sha256,
            "network": description.network,
            "title": description.title,
            "scale": description.scale,
            "form": description.form,
            "halo": description.halo,
            "parameters": description.parameters,
            "multiply_adds": description.multiply_adds,
            "convolutions": description.convolutions,
            "unfolded": unfolded,
            "costs": None if costs is None else costs.to_json(layers=False),
            "published": [asdict(row) for row in entry.published] if entry else [],
        }

    def _costs_of(self, file: ModelFile, height: int, width: int) -> Costs | None:
        key = (id(file), height, width)
        if key not in self._costs:
            try:
                self._costs[key] = graph_costs(file, height, width)
            except ExportError as exc:
                self._costs[key] = None
                self._note(exc.message)
        return self._costs[key]

    def _probe_devices(self) -> None:
        """Before and after the timing: of a machine that others use too, the better moment counts."""
        on_cpu: list[tuple[backends.Backend, str]] = []
        for contender in self.contenders:
            gpu = known_gpu(contender.runner.info.device)
            if gpu is not None:
                self._peaks[_device(contender)] = gpu
            elif _is_gpu(contender):
                self._note(f"no datasheet peaks are known for {contender.runner.info.device}: no limit is shown")
            elif contender.engine != "torch":
                on_cpu.append((backends.get(contender.engine), contender.precision))
        if any(not _is_gpu(c) for c in self.contenders):
            self.progress("probing this machine's peak")
            threads = self.document["environment"]["threads"]
            name = self.document["environment"]["cpu"]
            peaks = self._probe(name, list(dict.fromkeys(on_cpu)), threads=threads)
            known = self._peaks.get("cpu")
            self._peaks["cpu"] = peaks if known is None else known.best_of(peaks)
        self.document["roofline"] = [{"key": key, **peaks.to_json()} for key, peaks in self._peaks.items()]

    def _time(self) -> None:
        before = CpuUse.now()
        for case in self.cases:
            stop = Stop(self.settings.runs, self.settings.seconds)
            measured = measure(
                {contender.name: contender for contender in self.contenders},
                case.inputs,
                stop,
                warm_up=self.settings.warm_up,
                clock=self.clock,
                progress=lambda text, case=case: self.progress(f"{case.label}: {text}"),  # type: ignore[misc]
            )
            self.document["results"] += self._results(case, measured)
            if measured.interrupted:
                raise KeyboardInterrupt
        others = CpuUse.now().others_since(before)
        self.document["environment"]["other_processes_cores"] = others
        if others is not None and others > BUSY_CORES:
            self._note(
                f"other processes kept {others:.1f} of {os.cpu_count()} cores busy meanwhile: "
                "trust the ratios, not the milliseconds"
            )

    def _profile(self) -> None:
        """Kernel by kernel, apart from the timing: looking on makes an engine slower."""
        for case in self.cases:
            if case.size is None:
                continue
            for contender in self.contenders:
                self.progress(f"{case.label}: profiling {contender.name}")
                costs = self._costs_of(contender.file, *case.size)
                steps = contender.runner.profile(case.inputs[0], PROFILE_RUNS) if costs is not None else None
                if costs is not None and steps:
                    self._layer_times[case.label, contender.name] = layer_times(costs.layers, steps)

    def _results(self, case: Case, measured: Measurement) -> list[Document]:
        found: list[Document] = []
        first = measured.series[self.contenders[0].name].latencies_ms
        for contender in self.contenders:
            series = measured.series[contender.name]
            result: Document = {"case": case.label, "contender": contender.name, "latency_ms": None}
            result["warm_up"] = None if series.warm_up is None else asdict(series.warm_up)
            values = series.latencies_ms
            if len(values):
                summary = summarise(values)
                result["latency_ms"] = asdict(summary)
                result["verdicts"] = verdicts(summary) + _warm_up_verdict(series.warm_up)
                result["throughput"] = _throughput(case, summary, contender.model.file.description.scale)
                ratio = ratio_of_medians(first, values)
                result["ratio"] = {"to": self.contenders[0].name, **asdict(ratio)}
                result["speedup_over_torch"] = self._speedup(contender, measured)
                result["stages_ms"] = {s: asdict(summarise(_array(v))) for s, v in series.stages_ms.items()}
                result["series_ms"] = [1e3 * value for value in series.latencies_s]
                result["started_s"] = series.started_s
            found.append(result)
        noisy = [r["contender"] for r in found if r["latency_ms"] and r["latency_ms"]["spread"] > NOISY_SPREAD]
        if len(noisy) * 2 > len(found):
            self._note(f"{case.label}: a noisy machine, {len(noisy)} of {len(found)} series spread widely")
        return found

    def _speedup(self, contender: Contender, measured: Measurement) -> Document | None:
        """How many times as fast as the same model in PyTorch, as trained; None where that did not run."""
        for other in self.contenders:
            if (other.model.name, other.engine, other.form) == (contender.model.name, "torch", AS_TRAINED):
                ours, theirs = (measured.series[c.name].latencies_ms for c in (contender, other))
                return {"to": other.name, **asdict(ratio_of_medians(ours, theirs))}
        return None

    def _set_limits(self) -> None:
        """Each latency's share of the limit, now that the peaks are known for good."""
        contenders = {contender.name: contender for contender in self.contenders}
        cases = {case.label: case for case in self.cases}
        for result in self.document["results"]:
            contender, case = contenders[result["contender"]], cases[result["case"]]
            if result["latency_ms"] is not None:
                result["limit"] = self._limit(contender, case, result["latency_ms"]["p50"])

    def _limit(self, contender: Contender, case: Case, p50: float) -> Document | None:
        peaks = self._peaks.get(_device(contender))
        height, width = case.size or (REPORT_SIZE, REPORT_SIZE)
        costs = self._costs_of(contender.file, height, width)
        if peaks is None or costs is None:
            return None
        images = case.pixels / (height * width)
        limit = model_limit(costs, peaks, contender.precision, images)
        if limit is None:
            return None
        flops = 2 * costs.multiply_adds * images
        moved = sum(layer_bytes(layer, contender.precision, images) for layer in costs.layers)
        document: Document = {
            "device": _device(contender),
            "ms": limit.ms,
            "compute_ms": limit.compute_ms,
            "memory_ms": limit.memory_ms,
            "bound": limit.bound,
            "share": limit.ms / p50,
            "gflops": flops / p50 / 1e6,
            "flops_per_byte": flops / moved,
        }
        if self.settings.layers:
            times = self._layer_times.get((case.label, contender.name))
            took = times.layers if times else (None,) * len(costs.layers)
            kernels = times.computed_in if times else ("",) * len(costs.layers)
            document["layers"] = [
                {**asdict(layer), **asdict(least), "took_ms": ms, "computed_in": computed_in}
                for layer, ms, computed_in in zip(costs.layers, took, kernels, strict=True)
                if (least := layer_limit(layer, peaks, contender.precision, images))
            ]
            document["profile"] = None if times is None else {"ms": times.total, "between_ms": times.between}
        return document

    def _look(self) -> None:
        """The first pairs, or images, upscaled by every model."""
        for name, low, high in self.shown:
            self.progress(f"upscaling {name}")
            self.pictures.append(make_picture(name, low, high, self.contenders))

    def _standings(self, challenge: Challenge) -> Document:
        label = self._challenge_case()
        measured = {
            r["contender"]: r["latency_ms"]["p50"]
            for r in self.document["results"]
            if r["case"] == label and r["latency_ms"]
        }
        return {"case": label, **standings(challenge, self.contenders, measured)}

    def _challenge_case(self) -> str:
        sized = [case.label for case in self.cases if case.size == (REPORT_SIZE, REPORT_SIZE) and case.batch == 1]
        return sized[0] if sized else self.cases[0].label

    def _note(self, text: str) -> None:
        if text not in self.document["notes"]:
            self.document["notes"].append(text)


def challenge_of(year: int | None) -> Challenge | None:
    """The challenge of a year."""
    return None if year is None else CHALLENGES[year]


def _is_gpu(contender: Contender) -> bool:
    return contender.engine not in CPU_ENGINES


def _device(contender: Contender) -> str:
    return contender.runner.info.device if _is_gpu(contender) else "cpu"


def _case_json(case: Case) -> Document:
    return {
        "label": case.label,
        "batch": case.batch,
        "height": case.size[0] if case.size else None,
        "width": case.size[1] if case.size else None,
        "inputs": len(case.inputs),
        "mean_pixels": case.pixels,
    }


def _throughput(case: Case, summary: Summary, scale: int) -> Mapping[str, float]:
    seconds = summary.p50 / 1e3
    megapixels = case.pixels / 1e6
    return {
        "images_per_s": case.batch / seconds,
        "input_megapixels_per_s": megapixels / seconds,
        "output_megapixels_per_s": megapixels * scale**2 / seconds,
    }


def _warm_up_verdict(warm_up: Any) -> list[str]:
    if warm_up is None or warm_up.stable:
        return []
    return [f"never stable while warming up ({warm_up.runs} runs)"]


def _array(values: Sequence[float]) -> Any:
    return np.asarray(values, np.float64)
