//! Two real daemons on this machine, over unix sockets.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::args::DemoArgs;
use crate::commands::{self, Qmp};
use crate::spec::{Address, NbdUri};

/// Name of the one volume.
pub(crate) const EXPORT: &str = "disk0";
/// How long a daemon has to come up, to connect, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often something that must come is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Set when the user interrupts.
pub(crate) type Interrupted = std::sync::Arc<AtomicBool>;

/// Goes on, unless the user has interrupted.
pub(crate) fn check(interrupted: &Interrupted) -> anyhow::Result<()> {
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    /// Disks and logs.
    pub(crate) directory: PathBuf,
    /// Sockets, whose paths must be short.
    sockets: PathBuf,
}

impl Places {
    /// Two directories that exist.
    pub(crate) fn new(directory: &Path, sockets: &Path) -> Self {
        Self { directory: directory.into(), sockets: sockets.into() }
    }

    /// A file for a disk or a log.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A socket.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    fn address(&self, name: &str) -> Address {
        Address::Unix(self.socket(name))
    }
}

/// A daemon that ends with this value.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    control: Address,
    log: PathBuf,
}

impl Daemon {
    /// Starts the secondary.
    pub(crate) fn secondary(places: &Places, args: &DemoArgs) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("secondary").arg("--disk").arg(places.file("secondary.img"));
        command.arg("--guest").arg(places.address("guest").to_string());
        command.args(["--buffer", "memory", "--buffer-size", &args.buffer_size.to_string()]);
        Self::start("secondary", places, command)
    }

    /// Starts the primary.
    pub(crate) fn primary(places: &Places, args: &DemoArgs) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("primary").arg("--disk").arg(places.file("primary.img"));
        let replica = NbdUri { address: places.address("secondary"), export: EXPORT.into() };
        command.arg("--replica").arg(replica.to_string());
        command.arg("--replica-control").arg(places.address("secondary-control").to_string());
        command.arg("--checkpoint-every").arg(args.checkpoint_every.to_string());
        Self::start("primary", places, command)
    }

    fn start(name: &'static str, places: &Places, mut command: Command) -> anyhow::Result<Self> {
        let control = places.address(&format!("{name}-control"));
        command.arg("--listen").arg(places.address(name).to_string());
        command.args(["--export", EXPORT, "--start", "--end-with-parent"]);
        command.arg("--control").arg(control.to_string());
        let log = places.file(&format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // An interrupt from the terminal is for the demo alone, which then ends its daemons.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, child, control, log })
    }

    /// Waits until the daemon answers on its control socket.
    pub(crate) fn connect(&mut self, interrupted: &Interrupted) -> anyhow::Result<Qmp> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            check(interrupted)?;
            self.ensure_alive()?;
            match Qmp::connect(&self.control, PATIENCE) {
                Ok(qmp) => return Ok(qmp),
                Err(failure) if Instant::now() >= deadline => {
                    bail!("the {} does not come up: {failure}; its log is {}", self.name, self.log.display())
                }
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Whether the process is still there.
    pub(crate) fn ensure_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the {} has ended ({status}): {}", self.name, self.last_words()),
        }
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).map(str::trim);
        last.unwrap_or("its log is empty").to_string()
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.ensure_alive()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the clean end.
    pub(crate) fn end(&mut self) -> anyhow::Result<ExitStatus> {
        self.ensure_alive()?;
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(LOOK);
        }
        bail!("the {} does not end; its log is {}", self.name, self.log.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Whatever fails here: the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the primary has its replica.
pub(crate) fn wait_for_replica(qmp: &mut Qmp, interrupted: &Interrupted) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        check(interrupted)?;
        let status = commands::query(qmp)?;
        let volume = status.volumes.first().context("the primary has no volume")?;
        let replica = volume.replicas.first().context("the primary has no replica")?;
        ensure!(!replica.behind, "the replica is behind before anything was written");
        let is_reached = replica.connected && replica.control_connected != Some(false);
        if is_reached && volume.stage == "running" {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the primary does not reach its replica");
        thread::sleep(LOOK);
    }
}
