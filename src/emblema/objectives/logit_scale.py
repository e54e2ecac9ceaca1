"""Placeholder until the full module lands."""

import math

import torch
from torch import nn


class LogitScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self):
        return self.parameter.exp().clamp(max=100)

    def bound_(self):
        pass

    @classmethod
    def preset(cls, name):
        return cls()
