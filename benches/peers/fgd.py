"""The peer of `cargo lab bench fgd`: one training step of the kernel transformer in PyTorch eager, on the CPU.

The same model and the same loss as ours: covariates X [B, n+1, d], keys are all tokens but the last, the residual's
weights g = (I + r H / n) ... e_{n+1} from the last layer back, the loss is the mean of g' K g, one clipping of all
gradients together, Adam. The last layer works on the query's column alone, as ours does.

Reads orders on standard input and writes an answer for each, one JSON object a line:

    {"open": {"x", "k", "shape", "params", "layers", "heads", "steps"}}  takes prompts and a network, makes steps -> {"losses"}
    {"steps": {"seconds"}}   steps on them, for at least so long                 -> {"ms"}, the mean of a step
"""

import json
import os
import sys
import time

# GPU libraries that this bench never calls may be empty stand-ins: their symbols must not be looked up on loading.
if hasattr(os, "RTLD_LAZY"):
    sys.setdlopenflags(os.RTLD_LAZY)

import torch

RATE, BETAS, CLIP = 0.02, (0.9, 0.98), 1.0
ACTIVATIONS = {
    "linear": lambda s: s,
    "ReLU": torch.relu,
    "exp": torch.exp,
    "softmax": lambda s: torch.softmax(s, dim=1),
}


class Training:
    """A network, its optimiser and a batch."""

    def __init__(self, x, k, params, layers, heads):
        d = x.shape[2]
        self.x, self.k, self.heads, self.layers = x, k, heads, layers
        params = params.reshape(layers, len(heads), 3 * d * d + 1)
        self.matrices = params[..., :-1].reshape(layers, len(heads), 3, d, d).clone().requires_grad_()
        self.r = params[..., -1].clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.matrices, self.r], lr=RATE, betas=BETAS)

    def loss(self):
        """The mean of g' K g."""
        x, n = self.x, self.x.shape[1] - 1
        columns = []
        for layer in range(self.layers):
            last = layer + 1 == self.layers
            queries = x[:, n:] if last else x
            moved, of_layer = x, []
            for head, name in enumerate(self.heads):
                a, b, c = self.matrices[layer, head]
                h = ACTIVATIONS[name](x[:, :n] @ (b.T @ c) @ queries.transpose(1, 2)) / n
                of_layer.append(h)
                if not last:
                    moved = moved + h.transpose(1, 2) @ x[:, :n] @ a.T
            columns.append(of_layer)
            x = moved
        g = torch.zeros(x.shape[0], n + 1, 1)
        g[:, n] = 1.0
        for layer in reversed(range(self.layers)):
            read = g[:, n:] if layer + 1 == self.layers else g
            added = sum(self.r[layer, head] * (h @ read) for head, h in enumerate(columns[layer]))
            g = torch.cat([g[:, :n] + added, g[:, n:]], dim=1)
        return (g * (self.k @ g)).sum(dim=(1, 2)).mean()

    def step(self):
        """One training step; the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.matrices, self.r], CLIP)
        self.optimizer.step()
        return loss.item()


def main():
    training = None
    for line in sys.stdin:
        order = json.loads(line)
        if "open" in order:
            o = order["open"]
            batch, tokens, d = o["shape"]
            x = torch.tensor(o["x"]).reshape(batch, tokens, d)
            k = torch.tensor(o["k"]).reshape(batch, tokens, tokens)
            training = Training(x, k, torch.tensor(o["params"]), o["layers"], o["heads"])
            answer = {"losses": [training.step() for _ in range(o["steps"])]}
        else:
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < order["steps"]["seconds"]:
                training.step()
                count += 1
            answer = {"ms": 1e3 * (time.perf_counter() - start) / count}
        print(json.dumps(answer), flush=True)


main()
