"""The peer of `cargo lab bench mesa`: one training step of a mesa layer in PyTorch eager, on the CPU, with PyTorch's threads.

The same layer, loss and optimiser as ours, in two formulations, both with PyTorch's autograd:

    recursion   R by Sherman and Morrison and S = sum v k', token by token, for all sequences and heads at once
    solve       cumulative sums of k k' + I/lambda and v k' at every token, and torch.linalg.solve for all tokens at once

Reads orders on standard input and writes an answer for each, one JSON object a line:

    {"open": {"x", "y", "shape", "dim", "heads", "params", "steps"}}  takes tokens, targets and a layer, makes steps -> {"losses"}
    {"steps": {"layer", "seconds"}}   steps on them, for at least so long  -> {"ms"}, the mean of a step
"""

import json
import os
import sys
import time

# GPU libraries that this bench never calls may be empty stand-ins: their symbols must not be looked up on loading.
if hasattr(os, "RTLD_LAZY"):
    sys.setdlopenflags(os.RTLD_LAZY)

import torch

RATE = 1e-4


def recursion(q, k, v, lam):
    b, h, t, d = q.shape
    r = lam.exp().view(1, h, 1, 1) * torch.eye(d).expand(b, h, d, d)
    s = torch.zeros(b, h, d, d)
    out = []
    for i in range(t):
        ki, vi, qi = k[:, :, i, :, None], v[:, :, i, :, None], q[:, :, i, :, None]
        u = r @ ki
        r = r - u @ u.transpose(2, 3) / (1 + ki.transpose(2, 3) @ u)
        s = s + vi @ ki.transpose(2, 3)
        out.append((s @ (r @ qi))[..., 0])
    return torch.stack(out, dim=2)


def solve(q, k, v, lam):
    h, d = q.shape[1], q.shape[3]
    prior = torch.eye(d) / lam.exp().view(1, h, 1, 1, 1)
    gram = torch.cumsum(k[..., :, None] * k[..., None, :], dim=2) + prior
    cross = torch.cumsum(v[..., :, None] * k[..., None, :], dim=2)
    return (cross @ torch.linalg.solve(gram, q[..., None]))[..., 0]


LAYERS = {"recursion": recursion, "solve": solve}


class Training:
    """A layer, its optimiser and a batch."""

    def __init__(self, o):
        batch, tokens, width = o["shape"]
        self.x = torch.tensor(o["x"]).view(batch, tokens, width)
        self.y = torch.tensor(o["y"]).view(batch, tokens, o["dim"])
        self.heads, self.dim = o["heads"], o["dim"]
        self.params = [torch.nn.Parameter(torch.tensor(p["values"]).view(p["shape"])) for p in o["params"]]
        self.optimizer = torch.optim.AdamW(self.params, lr=RATE, weight_decay=0.0)

    def step(self, layer):
        """One training step; the loss before it."""
        wq, wk, wv, p, lam = self.params
        b, t, width = self.x.shape
        split = lambda w: (self.x @ w.T).view(b, t, self.heads, -1).transpose(1, 2)
        self.optimizer.zero_grad()
        mixed = LAYERS[layer](split(wq), split(wk), split(wv), lam.view(-1))
        out = (self.x + mixed.transpose(1, 2).reshape(b, t, -1) @ p.T)[..., : self.dim].clamp(-4, 4)
        loss = ((out - self.y) ** 2).sum(-1).mean() / 2
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main():
    training = None
    for line in sys.stdin:
        order = json.loads(line)
        if "open" in order:
            training = Training(order["open"])
            # The two formulations in turn: both have to be the layer.
            layers = [("recursion", "solve")[i % 2] for i in range(order["open"]["steps"])]
            answer = {"losses": [training.step(layer) for layer in layers]}
        else:
            o = order["steps"]
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < o["seconds"]:
                training.step(o["layer"])
                count += 1
            answer = {"ms": 1e3 * (time.perf_counter() - start) / count}
        print(json.dumps(answer), flush=True)


main()
