//! Opens JupyterLab on the notebooks: on the loopback interface alone, with its token, with all its files in `.lab/`,
//! and without asking anything of the network.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::house::{self, House};
use crate::setup::{self, kernelspecs, python};
use crate::trouble::{Outcome, Subject, Trouble};

/// How to open JupyterLab.
#[derive(Args, Debug)]
pub struct Options {
    /// Do not open a browser; the address is printed either way
    #[arg(long)]
    pub no_browser: bool,
    /// The port to listen on; without it, the first free one from 8888
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Set up what is missing and stop there
    #[arg(long)]
    pub setup_only: bool,
}

/// Sets up, opens JupyterLab and waits until it ends.
pub fn open(house: &House, options: &Options) -> Outcome<u8> {
    // Before anything long: a port that is taken should not be news after ten minutes of building.
    let port = if options.setup_only { 0 } else { port(options.port)? };
    let ready = setup::all(house)?;
    if options.setup_only {
        eprintln!("Everything is set up: `cargo lab` opens JupyterLab.");
        return Ok(0);
    }
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).doing(|| "watch for signals".into())?;
    let token = token()?;
    let mut server = start(house, &ready.python, port, &token, options)?;
    pass_on(signals, &server);
    let address = format!("http://127.0.0.1:{port}/lab?token={token}");
    wait_until_it_answers(&mut server, port, &token)?;
    println!("JupyterLab is at {address}\nCtrl-C ends it.");
    let _ = std::io::stdout().flush();
    let status = server.wait().doing(|| "wait for JupyterLab".into())?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(0))
}

/// Has the server end, kernels and all, when this process is asked to.
fn pass_on(mut signals: Signals, server: &Child) {
    let server = Pid::from_child(server);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let _ = kill_process(server, Signal::TERM);
        }
    });
}

/// The port asked for, or a free one.
fn port(asked: Option<u16>) -> Outcome<u16> {
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let Some(port) = asked else {
        return (8888..8988).find(|port| listen(*port).is_ok()).ok_or_else(|| {
            Trouble::new("the ports 8888 to 8987 are all in use").mend("name a free one: cargo lab --port 9999")
        });
    };
    listen(port).map(|_| port).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => Trouble::new(format!("port {port} is in use by another program"))
            .mend(format!("name another: cargo lab --port {}", port.wrapping_add(1).max(1024)))
            .mend("or let the lab find a free one: cargo lab"),
        ErrorKind::PermissionDenied => Trouble::new(format!("port {port} is reserved to the system"))
            .mend("name one above 1023: cargo lab --port 8888"),
        _ => Trouble::new(format!("port {port} cannot be used: {error}")),
    })
}

/// A secret that whoever opens the page must show.
fn token() -> Outcome<String> {
    let mut bytes = [0_u8; 24];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .doing(|| "draw a random token".into())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What JupyterLab is started with: `(option, value)`.
const SETTINGS: [(&str, &str); 9] = [
    ("ServerApp.ip", "127.0.0.1"),
    ("ServerApp.port_retries", "0"),
    ("MappingKernelManager.default_kernel_name", "incontext"),
    ("Application.log_level", "WARN"),
    // No news, no version checks, no extension shop: the lab works without a network.
    ("LabApp.check_for_updates_class", "jupyterlab.NeverCheckForUpdate"),
    ("LabApp.news_url", "None"),
    ("LabApp.extension_manager", "readonly"),
    ("LabApp.collaborative", "False"),
    // Python's own kernel comes with JupyterLab but has nothing to do here.
    ("KernelSpecManager.ensure_native_kernel", "False"),
];

fn start(house: &House, python: &python::Python, port: u16, token: &str, options: &Options) -> Outcome<Child> {
    let notebooks = house.root().join("notebooks");
    std::fs::create_dir_all(&notebooks).doing(|| format!("make the folder {}", notebooks.display()))?;
    settle(house)?;
    let mut command = Command::new(&python.program);
    command
        .args(["-m", "jupyterlab"])
        .args(options.no_browser.then_some("--no-browser"))
        // Jupyter refuses root for fear of what strangers may do on an open port; this one is closed to them.
        .args(rustix::process::getuid().is_root().then_some("--allow-root"))
        .args(SETTINGS.map(|(name, value)| format!("--{name}={value}")))
        .arg(format!("--KernelSpecManager.allowed_kernelspecs={:?}", kernelspecs::NAMES))
        .arg(format!("--ServerApp.port={port}"))
        .arg(format!("--ServerApp.root_dir={}", notebooks.display()))
        .current_dir(&notebooks)
        // Not on the command line, where every user of the machine could read it.
        .env("JUPYTER_TOKEN", token)
        .envs(environment(house)?)
        // Ctrl-C in a terminal reaches this process alone, which passes it on as a request to end.
        .process_group(0)
        .stdin(Stdio::null());
    command.spawn().doing(|| format!("start JupyterLab with {}", python.program.display()))
}

/// The environment in which Jupyter finds the kernels, and writes nothing outside `.lab/`.
pub fn environment(house: &House) -> Outcome<Vec<(&'static str, OsString)>> {
    let share = kernelspecs::share(house).into_os_string();
    let folders = python::folders(house)?.into_iter().map(|(name, folder)| (name, folder.into_os_string()));
    Ok(folders.chain([("JUPYTER_PATH", share)]).collect())
}

/// Starts a Python script that runs kernels, and gives it its orders on standard input. What it writes is to be read.
pub fn driver(house: &House, python: &python::Python, script: &str, order: &serde_json::Value) -> Outcome<Child> {
    let mut driver = Command::new(&python.program)
        .args(["-c", script])
        .envs(environment(house)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("run {}", python.program.display()))?;
    if let Some(mut pipe) = driver.stdin.take() {
        pipe.write_all(order.to_string().as_bytes()).doing(|| "speak to the driver".into())?;
    }
    Ok(driver)
}

/// Sets up and prints `{"python", "environment"}`, for programs that run Jupyter themselves, such as the tests.
pub fn print_environment(house: &House) -> Outcome<u8> {
    let ready = setup::all(house)?;
    let variables: serde_json::Map<_, _> = environment(house)?
        .into_iter()
        .map(|(name, value)| (name.to_string(), value.to_string_lossy().into()))
        .collect();
    println!("{}", serde_json::json!({ "python": ready.python.program, "environment": variables }));
    Ok(0)
}

/// What JupyterLab asks about on its first start, answered: it may not fetch news.
fn settle(house: &House) -> Outcome<()> {
    let answers = house.at("jupyter/settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings");
    if answers.is_file() {
        return Ok(());
    }
    house::write(&answers, "{\n    \"checkForUpdates\": false,\n    \"fetchNews\": \"false\"\n}\n")
}

/// Waits until the server answers for itself, so that the address is printed when it works.
fn wait_until_it_answers(server: &mut Child, port: u16, token: &str) -> Outcome<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = server.try_wait().doing(|| "watch JupyterLab".into())? {
            return Err(Trouble::new(format!("JupyterLab ended before it was ready ({status}); its words are above"))
                .mend("cargo lab doctor")
                .mend("start afresh with: rm -r .lab/venv && cargo lab"));
        }
        if answers(port, token).is_some() {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(120) {
            let _ = server.kill();
            return Err(Trouble::new("JupyterLab did not answer within two minutes").mend("cargo lab doctor"));
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

fn answers(port: u16, token: &str) -> Option<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET /api HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: token {token}\r\n\r\n").ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).ok()?;
    start.ends_with(b" 200").then_some(())
}
