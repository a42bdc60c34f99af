"""The peer of `cargo lab bench train`: a training step of a sequence model in PyTorch on the CPU, with its own threads.

The models are those of `newton` (section 2) and `mesa` (section 2) as one writes them in PyTorch today: nn.Linear,
scaled_dot_product_attention, nn.LSTM, layer_norm, tanh-GELU; the fused Adam and clipping to a global norm. Prompts of
linear regression are drawn for every step. With "authors", `newton`'s transformers as its authors' code has them: Hugging
Face's GPT2Model with the attention of its day, Adam as it is by default, no clipping.

Reads orders on standard input and writes an answer for each, one JSON object a line:

    {"open": {"model", "d", "n", "batch", "by"}}  a model and its optimiser, and three steps -> {"seconds"};
                                                  "by" is "eager", "compile" or "authors"
    {"steps": {"seconds"}}   steps, for at least so long                          -> {"ms"}, the median of the steps
    {"losses": {"model", "by", "values", "tokens", "targets", "batch", "steps"}}  steps on given sequences, all with
                                                  the same optimiser and clipping      -> {"losses"}
    {"about": true}                                                       -> {"torch", "threads", "peak_mb"}

A model is {"kind": "transformer", "inputs", "outputs", "layers", "width", "heads", "key", "mlp", "positions", "norm",
"bias", "read"} or {"kind": "lstm", "inputs", "outputs", "layers", "width"}.
"""

import json
import os
import statistics
import sys
import time
import warnings

# GPU libraries that this bench never calls may be empty stand-ins: their symbols must not be looked up on loading.
if hasattr(os, "RTLD_LAZY"):
    sys.setdlopenflags(os.RTLD_LAZY)
warnings.filterwarnings("ignore")

import torch
from torch import nn
from torch.nn import functional as F

RATE, CLIP = 1e-3, 1.0


class Block(nn.Module):
    """Attention, then an MLP, each behind a layer norm and beside a skip connection."""

    def __init__(self, m):
        super().__init__()
        width, inner = m["width"], m["heads"] * m["key"]
        self.heads = m["heads"]
        self.ln_1 = nn.LayerNorm(width) if m["norm"] else nn.Identity()
        self.c_attn = nn.Linear(width, 3 * inner, bias=m["bias"])
        self.c_proj = nn.Linear(inner, width, bias=m["bias"])
        self.mlp = m["mlp"] > 0
        if self.mlp:
            self.ln_2 = nn.LayerNorm(width) if m["norm"] else nn.Identity()
            self.c_fc = nn.Linear(width, m["mlp"], bias=m["bias"])
            self.c_out = nn.Linear(m["mlp"], width, bias=m["bias"])

    def forward(self, x):
        batch, length, _ = x.shape
        heads = lambda z: z.view(batch, length, self.heads, -1).transpose(1, 2)
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        if self.mlp:
            x = x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return x


class Transformer(nn.Module):
    """Read-in, positions, blocks, final layer norm, read-out; predictions at the tokens of the x."""

    def __init__(self, m):
        super().__init__()
        self.m = m
        if m["read"]:
            self.read_in = nn.Linear(m["inputs"], m["width"], bias=m["bias"])
            self.read_out = nn.Linear(m["width"], m["outputs"], bias=m["bias"])
        if m["positions"]:
            self.wpe = nn.Parameter(0.02 * torch.randn(m["positions"], m["width"]))
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["layers"]))
        self.ln_f = nn.LayerNorm(m["width"]) if m["norm"] else nn.Identity()

    def forward(self, tokens):
        x = self.read_in(tokens) if self.m["read"] else tokens
        if self.m["positions"]:
            x = x + self.wpe[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)[:, ::2]
        return self.read_out(x) if self.m["read"] else x[..., : self.m["outputs"]]

    def in_order(self):
        """The parameters in the order of `Architecture::tensors`, with whether each is transposed there."""
        m = self.m
        order = []
        add = lambda layer, transposed: order.extend(
            [(layer.weight, transposed)] + ([(layer.bias, False)] if layer.bias is not None else [])
        )
        if m["read"]:
            add(self.read_in, False)
        if m["positions"]:
            order.append((self.wpe, False))
        for block in self.blocks:
            if m["norm"]:
                add(block.ln_1, False)
            add(block.c_attn, True)
            add(block.c_proj, True)
            if block.mlp:
                if m["norm"]:
                    add(block.ln_2, False)
                add(block.c_fc, True)
                add(block.c_out, True)
        if m["norm"]:
            add(self.ln_f, False)
        if m["read"]:
            add(self.read_out, False)
        return order


class Authors(nn.Module):
    """Read-in, Hugging Face's GPT-2, read-out; predictions at the tokens of the x."""

    def __init__(self, m):
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        if not (m["read"] and m["norm"] and m["bias"] and m["mlp"] == 4 * m["width"] == 4 * m["heads"] * m["key"]):
            raise ValueError(f"not a GPT-2: {m}")
        config = GPT2Config(
            n_positions=m["positions"], n_embd=m["width"], n_layer=m["layers"], n_head=m["heads"], vocab_size=1,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="eager",
        )
        self.read_in = nn.Linear(m["inputs"], m["width"])
        self.backbone = GPT2Model(config)
        self.read_out = nn.Linear(m["width"], m["outputs"])

    def forward(self, tokens):
        embedded = self.read_in(tokens)
        return self.read_out(self.backbone(inputs_embeds=embedded).last_hidden_state)[:, ::2]

    def in_order(self):
        """As `Transformer.in_order`; the matrices of the blocks are not transposed here."""
        order = [self.read_in.weight, self.read_in.bias, self.backbone.wpe.weight]
        for block in self.backbone.h:
            for part in (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2, block.mlp.c_fc, block.mlp.c_proj):
                order += [part.weight, part.bias]
        for part in (self.backbone.ln_f, self.read_out):
            order += [part.weight, part.bias]
        return [(p, False) for p in order]


class Lstm(nn.Module):
    """Read-in, stacked layers, read-out; predictions at the tokens of the x."""

    def __init__(self, m):
        super().__init__()
        self.read_in = nn.Linear(m["inputs"], m["width"])
        self.lstm = nn.LSTM(m["width"], m["width"], m["layers"], batch_first=True)
        self.read_out = nn.Linear(m["width"], m["outputs"])

    def forward(self, tokens):
        return self.read_out(self.lstm(self.read_in(tokens))[0][:, ::2])

    def in_order(self):
        """As `Transformer.in_order`."""
        order = [self.read_in.weight, self.read_in.bias]
        for l in range(self.lstm.num_layers):
            for part in ("ih", "hh"):
                order += [getattr(self.lstm, f"weight_{part}_l{l}"), getattr(self.lstm, f"bias_{part}_l{l}")]
        return [(p, False) for p in order + [self.read_out.weight, self.read_out.bias]]


def draw(d, n, batch):
    """Prompts of linear regression as interleaved tokens [batch, 2 (n+1), d], and targets [batch, n+1, 1]."""
    x = torch.randn(batch, n + 1, d)
    y = torch.einsum("bti,bi->bt", x, torch.randn(batch, d))
    tokens = torch.zeros(batch, n + 1, 2, d)
    tokens[:, :, 0] = x
    tokens[:, :, 1, 0] = y
    return tokens.view(batch, 2 * (n + 1), d), y[:, :, None]


class Training:
    """A model and its optimiser."""

    def __init__(self, model, compiled=False, plain=False):
        self.model, self.plain = model, plain
        self.run = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=None if plain else True)

    def step(self, tokens, targets):
        """One training step; the loss before it."""
        self.optimizer.zero_grad()
        loss = ((self.run(tokens) - targets) ** 2).mean()
        loss.backward()
        if not self.plain:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()


def build(m, by):
    """The model that a description asks for."""
    if by == "authors":
        return Authors(m)
    return Lstm(m) if m["kind"] == "lstm" else Transformer(m)


def peak_mb():
    """This process's peak memory, where the system tells it."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return None


def main():
    torch.manual_seed(0)
    training = size = None
    for line in sys.stdin:
        order = json.loads(line)
        if "open" in order:
            o = order["open"]
            start = time.perf_counter()
            torch.compiler.reset()
            training = Training(build(o["model"], o["by"]), o["by"] == "compile", o["by"] == "authors")
            size = (o["d"], o["n"], o["batch"])
            for _ in range(3):
                training.step(*draw(*size))
            answer = {"seconds": time.perf_counter() - start}
        elif "steps" in order:
            start, steps = time.perf_counter(), []
            while not steps or time.perf_counter() - start < order["steps"]["seconds"]:
                begin = time.perf_counter()
                training.step(*draw(*size))
                steps.append(1e3 * (time.perf_counter() - begin))
            answer = {"ms": statistics.median(steps)}
        elif "losses" in order:
            o = order["losses"]
            model = build(o["model"], o["by"])
            values, at = torch.tensor(o["values"]), 0
            with torch.no_grad():
                for parameter, transposed in model.in_order():
                    piece = values[at : at + parameter.numel()]
                    at += parameter.numel()
                    shape = parameter.T.shape if transposed else parameter.shape
                    piece = piece.view(shape)
                    parameter.copy_(piece.T if transposed else piece)
            tokens = torch.tensor(o["tokens"]).view(o["batch"], -1, o["model"]["inputs"])
            targets = torch.tensor(o["targets"]).view(o["batch"], -1, o["model"]["outputs"])
            given = Training(model)
            answer = {"losses": [given.step(tokens, targets) for _ in range(o["steps"])]}
        else:
            answer = {"torch": torch.__version__, "threads": torch.get_num_threads(), "peak_mb": peak_mb()}
        print(json.dumps(answer), flush=True)


main()
