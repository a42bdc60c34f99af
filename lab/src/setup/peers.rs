//! PyTorch for the benches that compare with it: an environment of its own, `.lab/peers`, made only when asked for.
//!
//! The package index has PyTorch for Linux with its GPU kernels only, and pip would add some 2.5 GB of GPU libraries
//! that the CPU side never calls. So pip takes PyTorch and the few packages that importing it needs, without their
//! dependencies; the GPU libraries that the loader asks for by name are empty stand-ins, compiled here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::python::{self, Python};
use super::{Lock, need_space};
use crate::bars::Step;
use crate::house::{self, House, on_path};
use crate::trouble::{Outcome, Subject, Trouble};

/// What importing PyTorch needs, on every platform, and the last three what torch.compile does; then Hugging Face's
/// transformers, whose GPT-2 is the `newton` authors' model, and what importing it needs. Versions for Python 3.10 and
/// later.
const PACKAGES: [&str; 22] = [
    "torch==2.11.0",
    "filelock==3.20.3",
    "typing_extensions==4.15.0",
    "sympy==1.14.0",
    "mpmath==1.3.0",
    "networkx==3.4.2",
    "jinja2==3.1.6",
    "markupsafe==3.0.3",
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "huggingface_hub==0.36.2",
    "safetensors==0.7.0",
    "numpy==2.2.6",
    "regex==2026.1.15",
    "requests==2.32.5",
    "urllib3==2.6.3",
    "idna==3.11",
    "certifi==2026.1.4",
    "charset_normalizer==3.4.4",
    "packaging==25.0",
    "pyyaml==6.0.3",
    "tqdm==4.67.1",
];

/// The one GPU library that PyTorch calls on being loaded, to register its kernels: 2 MB.
const REGISTRY: &str = "nvidia-cuda-runtime==13.0.96";

/// The GPU libraries that are only ever named: the loader looks their symbols up when they are called, that is never.
const STAND_INS: [&str; 11] = [
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcufile.so.0",
    "libcupti.so.13",
    "libcurand.so.10",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvshmem_host.so.3",
];

/// Disk space, with room for pip to unpack in.
const SPACE: u64 = 2600 << 20;

/// The Python that has PyTorch, installed if need be.
pub fn ensure(house: &House) -> Outcome<Python> {
    let pins: Vec<String> =
        PACKAGES.iter().copied().chain(cfg!(target_os = "linux").then_some(REGISTRY)).map(String::from).collect();
    let venv = python::own(house, "peers");
    if python::installed(&venv, &pins) {
        return Ok(venv);
    }
    house::write(&house.at(".gitignore"), "*\n")?;
    let _lock = Lock::take(house, "peers", "another process is installing PyTorch; waiting for it to finish")?;
    if python::installed(&venv, &pins) {
        return Ok(venv);
    }
    need_space(house, SPACE, "PyTorch")?;
    let compiler = compiler()?;
    let base = python::base()?;
    let mut step = Step::start("Installing PyTorch into .lab/peers, a large download (0.5 GB; 1.5 GB on disk)");
    python::create(house, &base, &venv)?;
    let arguments: Vec<String> = std::iter::once("--no-deps".into()).chain(pins.iter().cloned()).collect();
    python::install(house, &venv, &arguments, &mut step)?;
    if cfg!(target_os = "linux") {
        stand_in(&venv, &compiler)?;
    }
    check(&venv)?;
    python::seal(&venv, &pins)?;
    step.done();
    // What pip downloaded was kept for the case of an interruption.
    let _ = std::fs::remove_dir_all(house.at("cache/pip"));
    Ok(venv)
}

/// The C compiler: Rust's linker needs it too.
fn compiler() -> Outcome<PathBuf> {
    let named = std::env::var_os("CC").filter(|name| !name.is_empty()).map(PathBuf::from);
    named.or_else(|| ["cc", "gcc", "clang"].iter().find_map(|name| on_path(name))).ok_or_else(|| {
        Trouble::new("there is no C compiler on the search path")
            .mend("on Debian or Ubuntu: sudo apt install build-essential; on Fedora: sudo dnf install gcc")
    })
}

/// Compiles the empty libraries to where PyTorch looks for the real ones.
fn stand_in(venv: &Python, compiler: &Path) -> Outcome<()> {
    let asked = Command::new(&venv.program)
        .args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')"])
        .output()
        .doing(|| format!("run {}", venv.program.display()))?;
    let packages = String::from_utf8(asked.stdout)
        .map_err(|_| Trouble::new(format!("{} does not tell where its packages are", venv.program.display())))?;
    let folder = Path::new(&packages).join("nvidia/cu13/lib");
    for name in STAND_INS {
        let mut soname = OsString::from("-Wl,-soname,");
        soname.push(name);
        let output = Command::new(compiler)
            .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
            .arg(folder.join(name))
            .arg(soname)
            .output()
            .doing(|| format!("run {}", compiler.display()))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(Trouble::new(format!(
                "{} could not compile an empty library:\n{}",
                compiler.display(),
                words.trim()
            )));
        }
    }
    Ok(())
}

/// Fails unless PyTorch computes a gradient.
fn check(venv: &Python) -> Outcome<()> {
    let question = "import os, sys\n\
        sys.setdlopenflags(getattr(os, 'RTLD_LAZY', 1))\n\
        import torch\n\
        x = torch.ones(2, 2, requires_grad=True)\n\
        (x @ x).sum().backward()";
    let output = Command::new(&venv.program)
        .args(["-c", question])
        .stdin(Stdio::null())
        .output()
        .doing(|| format!("run {}", venv.program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::new(format!("PyTorch was installed but does not run:\n{}", words.trim()))
        .mend("run the bench without --peers"))
}
