"""TPT: a prompt is tuned for each test picture alone, so that its views agree on an answer.

One step lowers the entropy of the mean answer of the surest views; the next picture starts afresh. No training
pictures are needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emblema.core.batch import Dataset, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.data.pictures import BrokenPicture, open_picture
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import optimiser
from emblema.parts.prompts import PromptClassifier
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class TPT(Transfer):
    card = Card(
        name="tpt",
        title="Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models",
        paper="2209.07511",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = H(mean_{v sure} p(y | z_v, V)),  the share rho of the views with the least entropy is sure",
        reads=Level.POOLED,
        needs=("no pictures",),
        claim="on shifted domains, TPT beats the zero-shot prompt that it starts from",
        oracle="lr 0: zero-shot; one view: plain entropy; the step against torch.optim.AdamW",
        deviations=(
            "views are crops and flips; officially AugMix is added on the fine-grained sets",
            "fp32 without loss scaling",
        ),
    )
    words: str = "a photo of a"
    start: str = ""  # folder of a fitted CoOp: begin with its words
    crops: int = 64  # views of a test picture, the evaluation view among them
    share: float = 0.1  # rho
    steps: int = 1  # of one picture
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-3, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8))

    def build(self, vlm, class_names):
        module = PromptClassifier(vlm, class_names, words=self.words)
        if self.start:
            module.prompt.context = nn.Parameter(_words(self.start))
        return module

    def read(self, data: Dataset, **reading) -> Inputs:
        """The evaluation view and `crops` - 1 random crops of each picture, drawn from the seed and its key."""
        plain = super().read(data, **reading)
        if self.crops < 2:
            return plain
        crops = super().read(data, **reading | {"views": self.crops - 1})
        arrays = {name: torch.cat([plain.arrays[name], crops.arrays[name]]) for name in plain.arrays}
        return replace(plain, arrays=arrays)

    def predict(self, data: Dataset | Inputs) -> Tensor:
        """Logits [N, C] of the evaluation view under each picture's own prompt.

        The row of a picture that cannot be read is NaN; a warning names it, and the others go on.
        """
        module = self.module_
        if isinstance(data, Inputs):
            return torch.stack([self.answer(module, z) for z in data.arrays["pooled"].unbind(1)])
        out = torch.full((len(data), len(self.class_names_)), torch.nan)
        sound = readable(data)
        if len(sound):
            whole = len(sound) == len(data)
            out[sound] = self.predict(self.read(data if whole else data.subset(sound)))  # type: ignore[attr-defined]
        return out

    scores = predict

    def answer(self, module, z: Tensor) -> Tensor:
        """Views [V, D] of one picture -> [C]."""
        logits = module.vlm.logits
        context = nn.Parameter(module.prompt.context.detach().clone())
        step = optimiser(nn.ParameterList([context]), self.optim)
        sure = None
        with torch.enable_grad():
            for _ in range(self.steps):
                log_p = logits(z, module.prompt(context)).log_softmax(-1)  # [V, C]
                if sure is None:  # the same views in later steps
                    sure = entropy(log_p).argsort(stable=True)[: max(int(len(z) * self.share), 1)]
                step.zero_grad()
                entropy(mean_of(log_p[sure])).backward()
                step.step()
        with torch.no_grad():
            return logits(z[:1], module.prompt(context))[0]


def entropy(log_p: Tensor) -> Tensor:
    """Of log-probabilities [..., C]: [...]."""
    return -(log_p.exp() * log_p).sum(-1)


def mean_of(log_p: Tensor) -> Tensor:
    """The logarithm of the mean of probabilities: [V, C] -> [C]."""
    return log_p.logsumexp(0) - torch.tensor(float(len(log_p))).log()


def readable(data: Dataset) -> list[int]:
    """The places of the pictures that can be opened; a warning names the others."""
    sound, broken = [], []
    for i in range(len(data)):
        try:
            open_picture(data[i].image)  # type: ignore[arg-type]
            sound.append(i)
        except BrokenPicture as error:
            broken.append(f"{data[i].key}: {error.reason}")
    if broken:
        warnings.warn(
            f"no answer (NaN) for {len(broken)} of {len(data)} pictures: {'; '.join(broken[:3])}", stacklevel=3
        )
    return sound


def _words(folder: str) -> Tensor:
    from safetensors.torch import load_file

    path = Path(folder) / "learnt.safetensors"
    context = load_file(path).get("prompt.context") if path.exists() else None
    if context is None or context.dim() != 2:
        raise BadData(f"{folder} holds no words shared by all classes: give the folder of a fitted CoOp (each=False)")
    return context
