"""The training loop: stages, exponential moving average, checkpoints one can stop at and go on from."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from espan_deploy.networks.span.espan import ESPAN
from training.config import Config, Stage
from training.data import CropSampler, Photographs
from training.evaluate import Pair, mean_psnr_y, validation_pairs
from training.initialise import initialise
from training.losses import distillation_loss, reconstruction_loss
from training.muon import Muon
from training.network import TrainingNetwork, to_scale

INITIAL_CROPS = 16
CHECKPOINT = "state.pt"

State = dict[str, Tensor]


class Trainer:
    """One run in one folder. Making a Trainer continues what the folder holds, or starts afresh.

    start: a training-form checkpoint whose weights a fresh run begins with, instead of initialising.

    ``iteration`` counts over all stages. The same config, photographs, thread count and machine give the same weights,
    interrupted or not.
    """

    def __init__(
        self,
        config: Config,
        photographs: Photographs,
        folder: Path,
        *,
        start: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.precision)
        self.training, self.held_out = photographs.split(config.hold_out_every)
        self.rng = np.random.default_rng(config.seed)
        self.sampler = CropSampler(
            self.training,
            detail_power=config.detail_power,
            rng=self.rng,
            drawn_share=config.drawn_share,
            degradations=config.degradations,
        )
        self.validation: dict[int, list[Pair]] = {}
        self.iteration = 0
        self.running_loss = float("nan")
        self.average: State = {}
        torch.manual_seed(config.seed)
        checkpoint = folder / CHECKPOINT
        if checkpoint.is_file():
            self._resume(torch.load(checkpoint, weights_only=True))
        else:
            self._start(start)

    # -- stages ------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.iteration >= self.config.iterations

    @property
    def stage(self) -> Stage:
        """The stage of the next iteration; after the last iteration, the last stage."""
        return self.config.stages[self.config.stage_at(min(self.iteration, self.config.iterations - 1))[0]]

    def _network(self, stage: Stage) -> TrainingNetwork:
        network = TrainingNetwork(
            scale=stage.scale,
            extra_blocks=stage.extra_blocks,
            student=stage.student,
            limited=self.config.excess > 0,
        )
        return network.to(self.device)

    def _named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """In the optimizer's order: the branches' after all others."""
        return sorted(self.network.named_parameters(), key=lambda named: _of_branch(named[0]))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Of what learns, once the network has its weights: branches that do not learn are merged here.

        Muon has the kernels, if the config wants it; AdamW the rest, which may be all.
        """
        if self.config.branch_rate == 0:
            self.network.freeze_branches()
        if self.config.compiled:
            self.network.compile_run()
        named = [(name, parameter) for name, parameter in self._named_parameters() if parameter.requires_grad]
        orthogonal = self.config.optimizer == "muon"

        def groups(kernels: bool) -> list[dict[str, Any]]:
            mine = [(name, p) for name, p in named if (orthogonal and p.ndim > 1) == kernels]
            return [
                {"params": [p for name, p in mine if not _of_branch(name)], "factor": 1.0},
                {"params": [p for name, p in mine if _of_branch(name)], "factor": self.config.branch_rate},
            ]

        # lr is set at every iteration
        adam = torch.optim.AdamW(
            groups(kernels=False), lr=1.0, betas=self.config.betas, weight_decay=self.config.weight_decay, fused=True
        )
        return [adam, Muon(groups(kernels=True), lr=1.0)] if orthogonal else [adam]

    def _start(self, start: Path | None) -> None:
        stage = self.config.stages[0]
        self.network = self._network(stage)
        if start is None:
            low, _ = self.sampler.batch(INITIAL_CROPS, stage.patch, stage.scale)
            initialise(self.network, self._images(low, torch.float32))
        elif stage.extra_blocks or stage.student:
            raise ValueError(f"{start.name} has the final network's weights alone, but stage {stage.name!r} needs more")
        else:
            self.network.espan.load_state_dict(load_file(start))
        self.optimizers = self._optimizers()
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}

    def _enter_stage(self, previous: Stage, stage: Stage) -> None:
        """Carry weights, average and moments over to the next stage's network, by name."""
        if (previous.scale, previous.extra_blocks, previous.student) == (
            stage.scale,
            stage.extra_blocks,
            stage.student,
        ):
            return
        held = {parameter: state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}
        moments = {name: held.get(parameter) for name, parameter in self._named_parameters()}
        weights, average = self.network.state_dict(), self.average
        if stage.scale != previous.scale:
            weights = to_scale(weights, previous.scale, stage.scale)
            average = to_scale(average, previous.scale, stage.scale)
        self.network = self._network(stage)
        fresh = self.network.state_dict()
        self.network.load_state_dict({name: weights.get(name, value) for name, value in fresh.items()})
        self.average = {name: average.get(name, value).clone() for name, value in fresh.items()}
        self.optimizers = self._optimizers()
        named = {parameter: name for name, parameter in self.network.named_parameters()}
        for optimizer in self.optimizers:
            for parameter in (each for group in optimizer.param_groups for each in group["params"]):
                moment = moments.get(named[parameter])
                if moment and moment["exp_avg"].shape == parameter.shape:
                    optimizer.state[parameter] = moment

    # -- iterations --------------------------------------------------------------------------------------------------

    def _images(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype) -> Tensor:
        """(N, H, W, C) uint8 to (N, C, H, W) in [0, 1], channels last in memory."""
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).to(dtype) / 255

    def step(self) -> float:
        """One iteration. Returns its loss."""
        index, within = self.config.stage_at(self.iteration)
        stage = self.config.stages[index]
        if within == 0 and index > 0:
            self._enter_stage(self.config.stages[index - 1], stage)
        low, target = self.sampler.batch(stage.batch, stage.patch, stage.scale)
        wanted = self._images(target, torch.float32)
        teacher, student = self.network(self._images(low, torch.float32).to(self.dtype))
        loss = reconstruction_loss(teacher, wanted, stage.loss)
        if student is not None:
            loss = loss + reconstruction_loss(student, wanted, stage.loss)
            loss = loss + stage.loss.distillation * distillation_loss(student, teacher)
        if self.config.excess:
            loss = loss + self.config.excess * self.network.excess
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(within) * group["factor"]
            optimizer.step()
        self._update_average()
        self.iteration += 1
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.iteration) / (10 + self.iteration))
        current = dict(self.network.named_parameters())
        names = [name for name in self.average if current[name].requires_grad]
        torch._foreach_lerp_([self.average[name] for name in names], [current[name] for name in names], 1 - decay)

    def run(
        self,
        *,
        report: Callable[[Trainer, float], None] | None = None,
        progress: Callable[[Trainer, float], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        until: int | None = None,
    ) -> None:
        """Iterate to the end (or to ``until``), or until ``stop()``; leaves a checkpoint behind in every case."""
        end = self.config.iterations if until is None else min(until, self.config.iterations)
        while self.iteration < end and not stop():
            loss = self.step()
            self.running_loss = loss if np.isnan(self.running_loss) else 0.99 * self.running_loss + 0.01 * loss
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss of iteration {self.iteration} is {loss}")
            if progress is not None:
                progress(self, self.running_loss)
            if report is not None and (self.iteration % self.config.report_every == 0 or self.finished):
                report(self, self.validate())
            if self.iteration % self.config.checkpoint_every == 0:
                self.save()
        self.save()

    # -- results -----------------------------------------------------------------------------------------------------

    def averaged_espan(self) -> ESPAN:
        """The final network as it would be now: the averaged weights, training form, without teacher's extras."""
        espan = ESPAN(scale=self.stage_entered.scale, training_form=True)
        prefix = "espan."
        espan.load_state_dict(
            {name.removeprefix(prefix): value for name, value in self.average.items() if name.startswith(prefix)}
        )
        return espan

    @property
    def stage_entered(self) -> Stage:
        """The stage whose network is at hand: that of the last iteration done."""
        return self.config.stages[self.config.stage_at(max(0, self.iteration - 1))[0]]

    def validate(self) -> float:
        """Y-PSNR in dB of the averaged weights on held-out photographs, with the extra blocks there are."""
        stage = self.stage_entered
        if stage.scale not in self.validation:
            self.validation[stage.scale] = validation_pairs(
                self.held_out, stage.scale, self.config.validation_side, self.config.degradations
            )
        network = self._network(stage)
        network.load_state_dict(self.average)
        return mean_psnr_y(network.image, self.validation[stage.scale])

    def export(self, path: Path) -> None:
        """Write the averaged weights in training form, as safetensors."""
        save_espan(self.averaged_espan().state_dict(), path)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _settings(self) -> str:
        return repr(asdict(self._at_open_length()))

    def _at_open_length(self) -> Config:
        """The config without the lengths that nothing done so far depends on.

        Those are the later stages' lengths, and that of a stage at constant rate which is still going on: a run may be
        cut short or drawn out when one sees how fast it goes, and is the run it would have been.
        """
        if self.iteration > self.config.iterations:
            return self.config
        index, _ = self.config.stage_at(max(0, self.iteration - 1))
        stages = tuple(
            replace(stage, iterations=-1)
            if later > index or (later == index and stage.learning_rate[0] == stage.learning_rate[1])
            else stage
            for later, stage in enumerate(self.config.stages)
        )
        return replace(self.config, stages=stages)

    def save(self) -> None:
        """Write the checkpoint beside the old one, then replace that: it is whole at every moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(
            {
                "settings": self._settings(),
                "photographs": self.training.names,
                "iteration": self.iteration,
                "running_loss": self.running_loss,
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "rng": repr(self.rng.bit_generator.state),
            },
            partial,
        )
        os.replace(partial, self.folder / CHECKPOINT)

    def _resume(self, held: dict[str, Any]) -> None:
        self.iteration = held["iteration"]
        if held["settings"] != self._settings():
            raise ValueError(f"{self.folder} holds a run with other settings; give another folder, or restore those")
        if held["photographs"] != self.training.names:
            raise ValueError(f"{self.folder} holds a run on other photographs; give another folder, or restore those")
        self.running_loss = held["running_loss"]
        self.network = self._network(self.stage_entered)
        self.network.load_state_dict(held["network"])
        self.optimizers = self._optimizers()
        for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.average = {name: value.to(self.device) for name, value in held["average"].items()}
        self.rng.bit_generator.state = ast.literal_eval(held["rng"])


def save_espan(state: State, path: Path) -> None:
    """Write a training-form ESPAN's weights as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, path, metadata={"format": "pt", "architecture": "ESPAN", "form": "training"})


def _of_branch(name: str) -> bool:
    """Whether a parameter belongs to a 1x1 or a chain of a re-parameterised convolution."""
    return ".rep." in name and ".rep.kxk." not in name
