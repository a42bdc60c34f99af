"""The notebook's side of `cargo lab bench train --notebook`: the training step of S, called from a cell of the lab's kernel.

Reads orders on standard input and writes an answer for each, one JSON object a line: {"open": {...}} starts the kernel and
makes the model, {"steps": {"seconds"}} runs a cell that trains for so long and answers {"ms"}, the median of its steps.
"""

import json
import os
import sys

from jupyter_client.manager import KernelManager

SETUP = [
    ':dep incontext = { path = ".." }\n'
    "use incontext::prelude::*;\n"
    "use incontext::models::{Gpt2, Gpt2Config, Init};\n"
    "use incontext::train::{Adam, AdamConfig, Clip, Stateful};",
    "let task = LinearRegression::new(Covariance::identity(5)?, 10, WeightPrior::Isotropic)?;\n"
    "let config = Gpt2Config { inputs: 5, layers: 8, ..Gpt2Config::default() }.with_width(64, 4);\n"
    "let mut model = Gpt2::init(config, Init::FanIn, 0)?;\n"
    "let mut adam = Adam::new(AdamConfig { rate: 1e-3, clip: Clip::Global(1.0), ..AdamConfig::default() })?;\n"
    "let mut seed = 0u64;",
]
STEPS = """
let start = std::time::Instant::now();
let mut steps = Vec::new();
while steps.is_empty() || start.elapsed().as_secs_f64() < %f {
    let begin = std::time::Instant::now();
    seed += 1;
    let sequences = task.sample(64, seed)?.interleaved()?;
    let (_, gradients) = model.loss_and_gradient(&sequences)?;
    adam.step(&mut model, gradients)?;
    steps.push(1e3 * begin.elapsed().as_secs_f64());
}
steps.sort_by(f64::total_cmp);
println!("ms {}", steps[steps.len() / 2]);
"""


def execute(client, code):
    words = []

    def keep(message):
        content = message["content"]
        words.append(content.get("text", "") or content.get("evalue", ""))

    client.execute_interactive(code, output_hook=keep, timeout=1800)
    return "".join(words)


def main():
    answers = sys.stdout
    manager = client = None
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "open" in order:
                manager = KernelManager(kernel_name="incontext")
                manager.start_kernel(cwd=order["open"]["cwd"], stdout=sys.stderr)
                client = manager.client()
                client.start_channels()
                client.wait_for_ready(timeout=1800)
                for code in [*SETUP, STEPS % 0.0]:
                    words = execute(client, code)
                if "ms " not in words:
                    sys.exit(f"the cells did not run: {words}")
                answer = {}
            else:
                words = execute(client, STEPS % order["steps"]["seconds"])
                answer = {"ms": float(words.split("ms ")[1].split()[0])}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        if client is not None:
            client.stop_channels()
            manager.shutdown_kernel()


main()
