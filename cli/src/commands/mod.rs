//! Commands that speak to a daemon's control socket.

mod qmp;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use qmp::Qmp;
use serde_json::{Value, json};
use status::Status;

use crate::args::{Control, Sync};
use crate::failure::Failure;
use crate::spec::{Address, NbdUri};

impl Control {
    fn connect(&self) -> Result<Qmp, Failure> {
        Qmp::connect(&self.address, self.timeout.0)
    }
}

/// Asks a daemon for its status.
///
/// # Errors
/// [`Failure::Refused`] with the reason.
pub(crate) fn query(qmp: &mut Qmp) -> Result<Status, Failure> {
    let answer = qmp.execute("query-replication", &json!({}))?;
    serde_json::from_str(answer.get())
        .map_err(|error| Failure::Refused(format!("the daemon's status is not understood here: {error}")))
}

/// Whether the volumes that are meant are primaries. `xen-set-replication` names the role that they must have, so all
/// must have the same.
fn is_primary(qmp: &mut Qmp, only: Option<&str>) -> Result<bool, Failure> {
    let status = query(qmp)?;
    let mut meant = status.volumes.iter().filter(|volume| only.is_none_or(|only| volume.name == only));
    let is_primary = |volume: &status::Volume| volume.role == "primary";
    let Some(first) = meant.next().map(is_primary) else {
        return Err(Failure::Refused(match only {
            Some(name) => format!("there is no volume '{name}': `twinblock status` lists them"),
            None => "this daemon has no volume".into(),
        }));
    };
    if meant.any(|volume| is_primary(volume) != first) {
        let text = "this daemon has primaries and secondaries: say which volume is meant with --volume";
        return Err(Failure::Refused(text.into()));
    }
    Ok(first)
}

/// An object of those arguments that are there.
fn arguments<const N: usize>(pairs: [(&str, Option<Value>); N]) -> Value {
    let present = pairs.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?)));
    Value::Object(present.collect())
}

/// `twinblock start`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn start(control: &Control, volume: Option<&str>) -> Result<(), Failure> {
    let mut qmp = control.connect()?;
    let primary = is_primary(&mut qmp, volume)?;
    let arguments = arguments([
        ("enable", Some(true.into())),
        ("primary", Some(primary.into())),
        ("volume", volume.map(Value::from)),
    ]);
    qmp.execute("xen-set-replication", &arguments)?;
    Ok(())
}

/// `twinblock checkpoint`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn checkpoint(control: &Control, force: bool, volume: Option<&str>) -> Result<(), Failure> {
    let arguments = arguments([("force", force.then(|| true.into())), ("volume", volume.map(Value::from))]);
    let answer = control.connect()?.execute("xen-colo-do-checkpoint", &arguments)?;
    let taken: Taken = serde_json::from_str(answer.get()).unwrap_or_default();
    if !taken.left_out.is_empty() {
        anstream::eprintln!(
            "left out, since they are behind or not connected: {}",
            taken.left_out.join(", ")
        );
    }
    Ok(())
}

/// What a checkpoint of the pair returns.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Taken {
    left_out: Vec<String>,
}

/// `twinblock stop`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn stop(
    control: &Control,
    failover: bool,
    force: bool,
    volume: Option<&str>,
) -> Result<(), Failure> {
    let mut qmp = control.connect()?;
    let primary = is_primary(&mut qmp, volume)?;
    let arguments = arguments([
        ("enable", Some(false.into())),
        ("primary", Some(primary.into())),
        ("failover", Some(failover.into())),
        ("force", force.then(|| true.into())),
        ("volume", volume.map(Value::from)),
    ]);
    qmp.execute("xen-set-replication", &arguments)?;
    Ok(())
}

/// A replica to be attached.
#[derive(Clone, Debug)]
pub(crate) struct NewReplica {
    /// Its replication export.
    pub(crate) uri: NbdUri,
    /// What to call it.
    pub(crate) name: Option<String>,
    /// Of which volume.
    pub(crate) volume: Option<String>,
    /// Its control address.
    pub(crate) control: Option<Address>,
    /// What it misses.
    pub(crate) sync: Sync,
}

/// `twinblock attach`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn attach(control: &Control, replica: NewReplica) -> Result<(), Failure> {
    let arguments = arguments([
        ("uri", Some(replica.uri.to_string().into())),
        ("name", replica.name.map(Value::from)),
        ("volume", replica.volume.map(Value::from)),
        ("control", replica.control.map(|address| address.to_string().into())),
        ("sync", (replica.sync == Sync::Full).then(|| "full".into())),
    ]);
    control.connect()?.execute("attach", &arguments)?;
    Ok(())
}

/// `twinblock detach`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn detach(control: &Control, name: &str, volume: Option<&str>) -> Result<(), Failure> {
    let arguments = arguments([("name", Some(name.into())), ("volume", volume.map(Value::from))]);
    control.connect()?.execute("detach", &arguments)?;
    Ok(())
}

/// `twinblock status`; with `watch`, again and again until the daemon is gone.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn show(control: &Control, as_json: bool, watch: Option<Duration>) -> Result<(), Failure> {
    let mut qmp = control.connect()?;
    loop {
        if as_json {
            let answer = qmp.execute("query-replication", &json!({}))?;
            anstream::println!("{}", answer.get());
        } else {
            anstream::print!("{}", status::render(&query(&mut qmp)?));
        }
        let Some(every) = watch else { return Ok(()) };
        std::thread::sleep(every);
        if !as_json {
            anstream::println!();
        }
    }
}
