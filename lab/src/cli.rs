//! What can be typed after `cargo lab`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::house::House;
use crate::trouble::Outcome;
use crate::{bench, commands, doctor, jupyter, kernel};

/// The laboratory of incontext: which optimiser does a transformer run in context?
///
/// Without a command: sets up what is missing, all of it inside .lab/, and opens JupyterLab on the notebooks.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,
    #[command(flatten)]
    open: jupyter::Options,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Say what is there, what is missing, and the command that mends it
    Doctor,
    /// List the figures
    List {
        /// As JSON, and nothing else on standard output
        #[arg(long)]
        json: bool,
    },
    /// Make figures and check the papers' claims on them; exit code 1 if a claim fails
    Reproduce(commands::reproduce::Options),
    /// Train a model that the figures load
    Train(commands::train::Options),
    /// Write one figure in other formats
    Export(commands::export::Options),
    /// Make a safetensors file, which `Gpt2::load` reads, of a PyTorch one
    Convert(commands::convert::Options),
    /// Run notebooks from top to bottom and keep their outputs
    Execute(commands::execute::Options),
    /// Measure speed
    Bench(BenchOptions),
    /// Print, as JSON, the Python that has JupyterLab and the environment to run it in; sets up first
    #[command(hide = true)]
    Environment,
    /// Run a kernel: what Jupyter calls
    Kernel {
        /// The connection file that Jupyter wrote
        connection: PathBuf,
    },
    /// Wait for a kernel's launcher to end, and clean up after it
    #[command(hide = true)]
    KernelGuard {
        /// The kernel's folder
        folder: PathBuf,
    },
}

#[derive(Args, Debug)]
struct BenchOptions {
    #[command(subcommand)]
    bench: bench::Bench,
}

/// Does what was asked. Returns the exit code.
pub fn run(arguments: Arguments) -> Outcome<u8> {
    // Needs no repository, only the folder that it is given.
    if let Some(Task::KernelGuard { folder }) = &arguments.command {
        return kernel::guard::run(folder);
    }
    let house = House::find()?;
    match arguments.command {
        None => jupyter::open(&house, &arguments.open),
        Some(Task::Doctor) => doctor::run(&house),
        Some(Task::List { json }) => commands::list::run(json),
        Some(Task::Reproduce(options)) => commands::reproduce::run(&house, &options),
        Some(Task::Train(options)) => commands::train::run(&house, &options),
        Some(Task::Export(options)) => commands::export::run(&house, &options),
        Some(Task::Convert(options)) => commands::convert::run(&options),
        Some(Task::Execute(options)) => commands::execute::run(&house, &options),
        Some(Task::Bench(options)) => bench::run(&house, &options.bench),
        Some(Task::Environment) => jupyter::print_environment(&house),
        Some(Task::Kernel { connection }) => kernel::run(&house, &connection),
        Some(Task::KernelGuard { folder }) => kernel::guard::run(&folder),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
