import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.linear_probe import LinearProbe

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def test_is_that_of_scikit_learn():
    train, test = DATA.split("train"), DATA.split("test")
    system = LinearProbe(c=10.0).fit(MODEL, train)
    x, z = (system.read(s).arrays["pooled"][0].numpy() for s in (train, test))
    theirs = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000).fit(x, train.labels).predict_proba(z)
    assert np.allclose(system.predict(test).softmax(-1).numpy(), theirs, atol=1e-3)


def test_c_is_chosen_on_validation_pictures():
    val = DATA.split("val")
    y = torch.tensor(val.labels)
    right = lambda s: (s.predict(val).argmax(-1) == y).float().mean()
    assert right(LinearProbe().fit(MODEL, DATA.split("train"), val)) >= right(
        LinearProbe().fit(MODEL, DATA.split("train"))
    )
