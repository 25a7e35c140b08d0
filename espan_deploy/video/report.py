"""A film's row in the report of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from espan_deploy.pipeline.report import FileReport


@dataclass
class FilmReport(FileReport):
    """One film. Its stages are in frames per second, not in the latencies of pictures: ``stage_ms`` stays empty.

    frames: written by now, an earlier run's included; repeated: those of them that equal the one before and were not
    computed. expected_frames: as the film claims, 0 where it does not. seconds: of this run.
    stage_frames_per_second: of "decode", "infer" and "encode", what each would do alone, and "end_to_end".
    """

    frames: int = 0
    repeated: int = 0
    expected_frames: int = 0
    seconds: float = 0.0
    stage_frames_per_second: dict[str, float] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Of all its frames."""
        return super().pixels * self.frames

    def plan(self) -> str:
        """What is planned, as people read it."""
        frames = f"{self.expected_frames} frames" if self.expected_frames else "an unknown number of frames"
        return f"{self.input}  {self.width}x{self.height}, {frames}"

    def line(self) -> str:
        """As people read it."""
        rates = self.stage_frames_per_second
        stages = ", ".join(f"{stage} {rate:.1f}" for stage, rate in rates.items() if stage != "end_to_end")
        total = f": {rates['end_to_end']:.1f} frames/s ({stages})" if "end_to_end" in rates else ""
        return f"{self.output}: {self.frames} frames, {self.repeated} repeated, in {self.seconds:.1f} s{total}"
