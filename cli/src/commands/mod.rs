//! Commands that speak to a daemon's control socket.

mod qmp;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use qmp::Qmp;
use serde_json::{Map, Value, json};
use status::Status;

use crate::args::Control;
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

/// Whether the daemon's volumes are primaries. `xen-set-replication` acts on all volumes and names one role, so they
/// must have the same.
fn is_primary(qmp: &mut Qmp) -> Result<bool, Failure> {
    let status = query(qmp)?;
    let is_primary = |volume: &status::Volume| volume.role == "primary";
    match (status.volumes.iter().any(is_primary), status.volumes.iter().all(is_primary)) {
        (any, all) if any == all => Ok(any),
        _ => Err(Failure::Refused(
            "this daemon has primaries and secondaries: send xen-set-replication with the role that is meant"
                .into(),
        )),
    }
}

/// `twinblock start`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn start(control: &Control) -> Result<(), Failure> {
    let mut qmp = control.connect()?;
    let primary = is_primary(&mut qmp)?;
    qmp.execute("xen-set-replication", &json!({ "enable": true, "primary": primary }))?;
    Ok(())
}

/// `twinblock checkpoint`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn checkpoint(control: &Control, force: bool) -> Result<(), Failure> {
    let arguments = if force { json!({ "force": true }) } else { json!({}) };
    control.connect()?.execute("xen-colo-do-checkpoint", &arguments)?;
    Ok(())
}

/// `twinblock stop`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn stop(control: &Control, failover: bool, force: bool) -> Result<(), Failure> {
    let mut qmp = control.connect()?;
    let primary = is_primary(&mut qmp)?;
    let mut arguments = json!({ "enable": false, "primary": primary, "failover": failover });
    if force && let Some(map) = arguments.as_object_mut() {
        map.insert("force".into(), true.into());
    }
    qmp.execute("xen-set-replication", &arguments)?;
    Ok(())
}

/// `twinblock attach`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn attach(
    control: &Control,
    uri: &NbdUri,
    name: Option<&str>,
    volume: Option<&str>,
    replica_control: Option<&Address>,
) -> Result<(), Failure> {
    let mut arguments = Map::new();
    arguments.insert("uri".into(), uri.to_string().into());
    let control_address = replica_control.map(ToString::to_string);
    for (key, value) in [("name", name), ("volume", volume), ("control", control_address.as_deref())] {
        if let Some(value) = value {
            arguments.insert(key.into(), value.into());
        }
    }
    control.connect()?.execute("attach", &Value::Object(arguments))?;
    Ok(())
}

/// `twinblock detach`.
///
/// # Errors
/// What the daemon answers.
pub(crate) fn detach(control: &Control, name: &str, volume: Option<&str>) -> Result<(), Failure> {
    let mut arguments = json!({ "name": name });
    if let (Some(volume), Some(map)) = (volume, arguments.as_object_mut()) {
        map.insert("volume".into(), volume.into());
    }
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
