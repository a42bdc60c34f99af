"""The peer of `cargo lab bench step`: one training step of `pgd` in PyTorch eager, on the CPU, with PyTorch's threads.

The formulation is the authors' (`pgd` sections 1 to 3): prompts are tokens Z [B, n+1, d+1], rows are tokens, the query
is the last one with label 0, and a layer forms all (n+1)² scores,

    Z <- Z + (1/n) (Z Q Zᵀ) M (Z Pᵀ),   P = [B 0; 0 1], Q = [A 0; 0 0], M = the identity without its last entry,

the loss is the mean of ([Z_L]_{n+1,d+1} + y)², every d x d gradient is clipped on its own, AdamW steps.

Reads orders on standard input and writes an answer for each, one JSON object a line:

    {"open": {"d", "n", "batch", "layers"}}  draws a batch and a network, and makes a step  -> {}
    {"steps": {"seconds"}}   steps, for at least so long                    -> {"ms"}, the mean of a step
    {"draw": true}           draws a batch like the open one, and drops it  -> {"ms"}
    {"losses": {"z", "y", "shape", "params", "layers", "steps"}}  steps on given prompts  -> {"losses"}
    {"about": true}                                         -> {"torch", "threads", "peak_mb"}
"""

import json
import os
import sys
import time

# GPU libraries that this bench never calls may be empty stand-ins: their symbols must not be looked up on loading.
if hasattr(os, "RTLD_LAZY"):
    sys.setdlopenflags(os.RTLD_LAZY)

import torch

RATE, BETAS, CLIP, STD = 0.1, (0.99, 0.9), 0.01, 1e-4


def widen(block, corner):
    """[block 0; 0 corner], (d+1) x (d+1)."""
    d = block.shape[0]
    full = torch.cat([block, torch.zeros(1, d)], dim=0)
    full = torch.cat([full, torch.zeros(d + 1, 1)], dim=1)
    full[d, d] = corner
    return full


def attention(b, a, z):
    """What a layer adds to the tokens z [B, n+1, d+1]."""
    n = z.shape[1] - 1
    mask = torch.eye(n + 1)
    mask[n, n] = 0
    scores = torch.einsum("bti,ij,bsj->bts", z, widen(a, 0.0), z)
    values = torch.einsum("ij,btj->bti", widen(b, 1.0), z)
    return torch.einsum("bts,sr,bri->bti", scores, mask, values) / n


def loss_of(params, z, y):
    """The in-context loss; params is [layers, 2, d, d], B before A."""
    for layer in params:
        z = z + attention(layer[0], layer[1], z)
    return ((z[:, -1, -1] + y) ** 2).mean()


def draw(d, n, batch):
    """A batch of prompts with covariance I: tokens and the queries' labels."""
    x = torch.randn(batch, n + 1, d)
    w = torch.randn(batch, d)
    y = torch.einsum("bti,bi->bt", x, w)
    z = torch.cat([x, y[:, :, None]], dim=2)
    z[:, n, d] = 0
    return z, y[:, n]


class Training:
    """A network, its optimiser and a batch."""

    def __init__(self, params, z, y):
        self.params = params.requires_grad_()
        self.z, self.y = z, y
        self.optimizer = torch.optim.AdamW([self.params], lr=RATE, betas=BETAS, weight_decay=0)

    def step(self):
        """One training step; the loss before it."""
        self.optimizer.zero_grad()
        loss = loss_of(self.params, self.z, self.y)
        loss.backward()
        gradient = self.params.grad
        norms = gradient.norm(dim=(-2, -1), keepdim=True)
        gradient.mul_((CLIP / (norms + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return loss.item()


def peak_mb():
    """This process's peak memory, where the system tells it."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return None


def main():
    torch.manual_seed(0)
    training = None
    for line in sys.stdin:
        order = json.loads(line)
        if "open" in order:
            o = order["open"]
            z, y = draw(o["d"], o["n"], o["batch"])
            training = Training(STD * torch.randn(o["layers"], 2, o["d"], o["d"]), z, y)
            training.step()
            answer = {}
        elif "steps" in order:
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < order["steps"]["seconds"]:
                training.step()
                count += 1
            answer = {"ms": 1e3 * (time.perf_counter() - start) / count}
        elif "draw" in order:
            batch, tokens, dim = training.z.shape
            start = time.perf_counter()
            draw(dim - 1, tokens - 1, batch)
            answer = {"ms": 1e3 * (time.perf_counter() - start)}
        elif "losses" in order:
            o = order["losses"]
            d = o["shape"][2] - 1
            z, y = torch.tensor(o["z"]).reshape(o["shape"]), torch.tensor(o["y"])
            params = torch.tensor(o["params"]).reshape(o["layers"], 2, d, d)
            # With tokens as rows, the authors' A is the transpose of the paper's.
            params[:, 1] = params[:, 1].transpose(-2, -1).clone()
            given = Training(params, z, y)
            answer = {"losses": [given.step() for _ in range(o["steps"])]}
        else:
            answer = {"torch": torch.__version__, "threads": torch.get_num_threads(), "peak_mb": peak_mb()}
        print(json.dumps(answer), flush=True)


main()
