"""mWAP and mSAP against scikit-learn, by the definition of RareAct written as loops."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.tasks.rare_action import RareAction
from emblema.tasks.zero_shot import ZeroShot

ACTIONS = [("cut", "phone"), ("cut", "egg"), ("hammer", "phone"), ("weigh", "shoe"), ("weigh", "egg")]


def clips(seed=0, n=120, videos=15):
    dice = np.random.default_rng(seed)
    asked, answer = dice.integers(0, 4, n), dice.integers(0, 5, n)  # the last action is never shown
    columns = {
        "key": [str(i) for i in range(n)],
        "image": [None] * n,
        "label": asked.tolist(),
        "annotation": answer.tolist(),
        "video": [f"v{v}" for v in dice.integers(0, videos, n)],
    }
    return Records(DatasetCard(name="rare", title="Rare", task="action"), columns, [" ".join(a) for a in ACTIONS])


class Scored:
    def __init__(self, scores):
        self.table = scores

    def scores(self, data):
        return self.table


def groups(data, action):
    """Positives, hard negatives and negatives of an action: by hand."""
    verb, noun = ACTIONS[action]
    found = ([], [], [])
    for i, (other, answer) in enumerate(zip(data.labels, data.column("annotation"))):
        if other == action:
            found[0 if answer == 1 else 2 if answer == 0 else 1].append(i)
        elif answer == 1:
            v, n = ACTIONS[other]
            found[1 if v == verb or n == noun else 2].append(i)
    return found


def weighted(data, scores, action):
    video = np.array(data.column("video"))
    rows, weight, shown = [], [], []
    for g, members in enumerate(groups(data, action)):
        for i in members:
            rows.append(i)
            weight.append(1 / sum(video[j] == video[i] for j in members))
            shown.append(g == 0)
    return average_precision_score(shown, scores[rows, action].numpy(), sample_weight=weight) if any(shown) else None


def test_weighted_precision_is_that_of_scikit_learn():
    data, scores = clips(), torch.randn(120, 5, generator=torch.Generator().manual_seed(1))
    outcome = RareAction(draws=2, resamples=20).run(Scored(scores), data)
    each = [w for c in range(5) if (w := weighted(data, scores, c)) is not None]
    assert len(each) == outcome.sizes["actions"] == 4
    assert outcome.metrics["mWAP"].value == pytest.approx(np.mean(each), abs=1e-9)
    assert [row["wAP"] for row in outcome.tables["per_class"]] == pytest.approx(each, abs=1e-9)
    low, high = outcome.metrics["mWAP"].low, outcome.metrics["mWAP"].high
    assert low < outcome.metrics["mWAP"].value < high


def test_sampled_precision_is_the_mean_over_one_clip_a_video():
    data, scores = clips(videos=4, n=60), torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    ours = RareAction(draws=400, resamples=2).run(Scored(scores), data).metrics["mSAP"].value
    dice, video, each = np.random.default_rng(0), np.array(data.column("video")), []
    for action in range(4):
        found = groups(data, action)
        values = []
        for _ in range(400):
            rows, shown = [], []
            for g, members in enumerate(found):
                for v in sorted({video[i] for i in members}):
                    rows.append(dice.choice([i for i in members if video[i] == v]))
                    shown.append(g == 0)
            values.append(average_precision_score(shown, scores[rows, action].numpy()))
        each.append(np.mean(values))
    assert ours == pytest.approx(np.mean(each), abs=0.02)


def test_one_clip_a_video_makes_both_the_same():
    data, scores = clips(n=40), torch.randn(40, 5, generator=torch.Generator().manual_seed(3))
    data.columns["video"] = [f"v{i}" for i in range(40)]
    found = RareAction(draws=3, resamples=2).run(Scored(scores), data).metrics
    assert found["mWAP"].value == pytest.approx(found["mSAP"].value, abs=1e-12)


def test_what_is_not_said_is_asked_for():
    data = clips()
    del data.columns["annotation"]
    with pytest.raises(BadData, match="column `annotation`, 0 to 4"):
        RareAction().run(Scored(torch.zeros(120, 5)), data)
    nothing = clips()
    nothing.columns["annotation"] = [0] * 120
    with pytest.raises(BadData, match="no clip of rare shows the action"):
        RareAction().run(Scored(torch.zeros(120, 5)), nothing)
    with pytest.raises(BadData, match="asked about, not what is seen"):
        ZeroShot().run(Scored(torch.zeros(120, 5)), clips())
    with pytest.raises(BadData, match="NaN"):
        RareAction().run(Scored(torch.full((120, 5), torch.nan)), clips())
