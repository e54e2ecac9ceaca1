"""What a run says while it runs: RUN/log.jsonl, a progress line on a terminal, TensorBoard where asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from emblema.engine.optimise import Step


class Log:
    """One JSON line an event, each with its step. A resumed run continues the file without repeated steps.

    `path=None` keeps nothing on disk (processes other than the first, and runs without a folder).
    """

    def __init__(
        self,
        path: Path | None,
        total_steps: int,
        *,
        start: int = 0,
        every: int = 1,
        progress: bool | None = None,
        tensorboard: bool = False,
        quiet: bool = False,
    ):
        self.total, self.every, self.quiet = total_steps, every, quiet
        self.file = None
        if path is not None:
            _keep_until(path, start)
            self.file = path.open("a", encoding="utf-8")
        self.board = _tensorboard(path, start) if tensorboard and path is not None else None
        shown = sys.stderr.isatty() if progress is None else progress
        self.bar = _Bar(total_steps, start) if shown and not quiet else None
        self.pace = 0.0  # pairs a second, smoothed

    def step(self, step: Step, scale: float | None) -> None:
        now = step.pairs / max(step.seconds, 1e-9)
        self.pace = now if not self.pace else 0.9 * self.pace + 0.1 * now
        if step.number % self.every == 0 or step.number == self.total:
            self.event(
                "step",
                step.number,
                loss=step.loss,
                losses=step.losses,
                scale=scale,
                lr=step.lr,
                grad_norm=step.grad_norm,
                pairs_per_second=round(self.pace, 2),
                seconds=round(step.seconds, 4),
                wait=round(step.wait, 4),
                duplicates=round(step.duplicates, 4),
            )
            if self.board is not None:
                values = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "pairs_per_second": self.pace}
                values |= {f"losses/{k}": v for k, v in step.losses.items()} | ({"scale": scale} if scale else {})
                for name, value in values.items():
                    self.board.add_scalar(name, value, step.number)
        if self.bar is not None:
            left = (self.total - step.number) * step.pairs / self.pace
            self.bar.update(step, scale, self.pace, left)

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Results of an evaluation during training."""
        self.event("evaluation", step, scores=scores)
        if self.board is not None:
            for name, value in scores.items():
                self.board.add_scalar(f"evaluation/{name}", value, step)
        self.say(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))

    def warning(self, step: int, text: str) -> None:
        self.event("warning", step, text=text)
        self.say(f"warning, step {step}: {text}")

    def event(self, kind: str, step: int, **values: Any) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"event": kind, "step": step, **values}) + "\n")
            self.file.flush()

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        for part in (self.file, self.board, self.bar):
            if part is not None:
                part.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:  # a kill in the middle of a line
            continue
    return events


def _keep_until(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint from which the run resumes."""
    if not path.exists():
        return
    kept = [e for e in read(path) if e.get("step", 0) <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
    partial.replace(path)


def _tensorboard(path: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('TensorBoard is an extra: pip install "emblema[log]", or leave it off') from error
    return SummaryWriter(str(path.parent / "tensorboard"), purge_step=start + 1)


class _Bar:
    """Loss terms, logit scale, pairs a second and the time left, on one line."""

    def __init__(self, total: int, start: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self.progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self.task = self.progress.add_task("", total=total, completed=start, text="")
        self.progress.start()

    def update(self, step: Step, scale: float | None, pace: float, left: float) -> None:
        terms = " ".join(f"{k} {v:.3f}" for k, v in step.losses.items())
        shown = f" scale {scale:.1f}" if scale is not None else ""
        text = f"{terms}{shown}  {pace:.1f} pairs/s  {clock(left)} left"
        self.progress.update(self.task, completed=step.number, text=text)

    def print(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self.progress.stop()


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"; from two days on, days."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
