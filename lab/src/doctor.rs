//! `cargo lab doctor`: what is there, what is missing, and the exact command that mends it. Changes nothing.

use std::net::{Ipv4Addr, TcpListener};

use incontext::Error;

use crate::house::{House, on_path};
use crate::kernel::template;
use crate::setup::rust::Toolchain;
use crate::setup::{evcxr, free_space, kernelspecs, pins, python, rust_src};
use crate::trouble::{Outcome, Trouble};

/// What was found about one thing.
enum Finding {
    /// It is there; how, in a few words.
    Found(String),
    /// It is missing, or wrong.
    Missing(Trouble),
    /// It is not as it could be, but nothing depends on it.
    Note(String),
}

use Finding::{Found, Missing, Note};

/// Examines everything. Exit code 1 if anything is missing.
pub fn run(house: &House) -> Outcome<u8> {
    let toolchain = Toolchain::find();
    let findings = [
        ("repository", repository(house)),
        ("disk space", space(house)),
        ("Rust", rust(&toolchain)),
        ("C compiler", linker()),
        ("Python", base()),
        ("JupyterLab", jupyter(house)),
        ("Rust kernel", kernel(house)),
        ("library sources", sources(house, &toolchain)),
        ("kernelspecs", specs(house)),
        ("kernel template", prebuilt(house, &toolchain)),
        ("port 8888", port()),
    ];
    let mut missing = 0;
    for (name, finding) in findings {
        match finding {
            Found(what) => println!("found    {name:16} {what}"),
            Note(what) => println!("note     {name:16} {what}"),
            Missing(trouble) => {
                missing += 1;
                println!("MISSING  {name:16} {}", trouble.what());
                for how in trouble.remedies() {
                    println!("         {:16} to mend it: {how}", "");
                }
            }
        }
    }
    if missing == 0 {
        println!("\nEverything is there: `cargo lab` opens JupyterLab.");
    } else {
        println!("\n{missing} missing.");
    }
    Ok(u8::from(missing > 0))
}

/// The set-up does it all; doctor says so wherever that is the remedy.
const SETUP: &str = "cargo lab --setup-only";

fn repository(house: &House) -> Finding {
    if house.root().to_str().is_none() {
        return Missing(
            Trouble::new(format!("the path {} is not UTF-8", house.root().display()))
                .mend("move the repository to a folder whose name is UTF-8"),
        );
    }
    match house.make("") {
        Ok(lab) if rustix::fs::access(&lab, rustix::fs::Access::WRITE_OK).is_ok() => {
            Found(house.root().display().to_string())
        }
        Ok(lab) => Missing(unwritable(&Error::file(lab, "write", "permission denied").to_string())),
        Err(trouble) => Missing(unwritable(trouble.what())),
    }
}

fn unwritable(what: &str) -> Trouble {
    Trouble::new(format!("the repository cannot be written to: {what}"))
        .mend("copy the repository to a folder that you can write to, and run the command there")
}

fn space(house: &House) -> Finding {
    // What a set-up from nothing takes at its highest.
    const WANTED: u64 = 4 << 30;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    match free_space(house) {
        Some(free) if free < WANTED && evcxr::find(house).is_none() => Missing(
            Trouble::new(format!("{:.1} GiB are free; a first set-up needs {:.0}", gib(free), gib(WANTED)))
                .mend("free some disk space"),
        ),
        Some(free) => Found(format!("{:.1} GiB free", gib(free))),
        None => Note("the free space of this disk is unknown".into()),
    }
}

fn rust(toolchain: &Outcome<Toolchain>) -> Finding {
    match toolchain {
        Ok(toolchain) => Found(toolchain.version.lines().next().unwrap_or_default().to_string()),
        Err(trouble) => Missing(repeat(trouble)),
    }
}

fn repeat(trouble: &Trouble) -> Trouble {
    trouble.remedies().iter().fold(Trouble::new(trouble.what()), |trouble, how| trouble.mend(how))
}

fn linker() -> Finding {
    match ["cc", "gcc", "clang", "link"].iter().find_map(|name| on_path(name)) {
        Some(path) => Found(path.display().to_string()),
        None => Missing(
            Trouble::new("there is no C compiler, which Rust links with")
                .mend("on Debian or Ubuntu: sudo apt install build-essential; on macOS: xcode-select --install"),
        ),
    }
}

fn base() -> Finding {
    if let Some(python) = python::conda() {
        return Found(format!("{} (the active conda environment)", python.program.display()));
    }
    match python::base() {
        Ok(base) => Found(format!("{}.{} at {}", base.version.0, base.version.1, base.program.display())),
        Err(trouble) => Missing(trouble),
    }
}

fn jupyter(house: &House) -> Finding {
    if let Some(python) = python::conda() {
        return match python.prefix.join("share/jupyter/labextensions/jupyterlab-plotly").is_dir() {
            true => Found(format!("in {}", python.prefix.display())),
            false => Missing(
                Trouble::new("the active conda environment has JupyterLab but not its Plotly renderer")
                    .mend("conda env update --file environment.yml, or: python -m pip install plotly"),
            ),
        };
    }
    let venv = python::venv(house);
    match pins::read(house) {
        Ok(pins) if python::installed(&venv, &pins) => Found(format!("in {}", house.short(&venv.prefix))),
        Ok(_) if venv.prefix.exists() => Missing(
            Trouble::new("the environment .lab/venv is unfinished, or not what environment.yml says").mend(SETUP),
        ),
        Ok(_) => Missing(Trouble::new("not installed").mend(SETUP)),
        Err(trouble) => Missing(trouble),
    }
}

fn kernel(house: &House) -> Finding {
    match evcxr::find(house) {
        Some(program) => Found(format!("evcxr_jupyter {} at {}", evcxr::VERSION, house.short(&program))),
        None => Missing(
            Trouble::new(format!(
                "evcxr_jupyter {} is not installed (building it takes 5 to 20 minutes)",
                evcxr::VERSION
            ))
            .mend(SETUP),
        ),
    }
}

fn sources(house: &House, toolchain: &Outcome<Toolchain>) -> Finding {
    match toolchain {
        Ok(toolchain) if rust_src::is_current(house, toolchain) => {
            Found(format!("in {}", house.short(&rust_src::folder(house))))
        }
        Ok(_) => Missing(Trouble::new("the standard library's sources, for type inference, are not there").mend(SETUP)),
        Err(_) => Missing(Trouble::new("they depend on Rust")),
    }
}

fn specs(house: &House) -> Finding {
    let folder = kernelspecs::share(house).join("kernels");
    match kernelspecs::NAMES.iter().find(|name| !folder.join(name).join("kernel.json").is_file()) {
        Some(name) => Missing(Trouble::new(format!("Jupyter does not know the kernel '{name}'")).mend(SETUP)),
        None if !house.program().is_file() => {
            Missing(Trouble::new("the kernels' launcher is not in .lab/bin").mend(SETUP))
        }
        None => Found(format!("{} in {}", kernelspecs::NAMES.join(", "), house.short(&folder))),
    }
}

fn prebuilt(house: &House, toolchain: &Outcome<Toolchain>) -> Finding {
    match toolchain {
        Ok(toolchain) if template::is_current(house, toolchain) => Found("up to date".into()),
        Ok(_) => {
            Missing(Trouble::new("it is not of the present sources; the next kernel start builds it first").mend(SETUP))
        }
        Err(_) => Missing(Trouble::new("it depends on Rust")),
    }
}

fn port() -> Finding {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 8888)) {
        Ok(_) => Found("free".into()),
        Err(_) => Note("in use; `cargo lab` takes the next free one, or the one you name with --port".into()),
    }
}
