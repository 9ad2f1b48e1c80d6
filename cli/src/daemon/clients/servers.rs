//! NBD servers and exports, as managers start, add, remove and stop them.

use tracing::info;
use twinblock_core::Micros;
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::poller::Poller;
use twinblock_io_posix::socket::Listener;

use super::{Clients, Exported, Listening, Rest, Served};
use crate::daemon::awake::Awake;
use crate::daemon::token::{Kind, token};
use crate::daemon::volume::Volume;

/// Most NBD servers of one daemon, and most exports of one server.
const SERVERS_MAX: usize = 256;
const EXPORTS_MAX: usize = 1024;

impl Clients {
    fn server(&self, name: &str) -> Option<usize> {
        self.listenings.iter().position(|server| !server.is_stopped() && server.name == name)
    }

    /// Whether there is a server of this name, or what to say if there is none.
    pub(in crate::daemon) fn check_server(&self, name: &str) -> Result<(), String> {
        match (self.server(name), name) {
            (Some(_), _) => Ok(()),
            (None, "") => Err("no NBD server runs; start one with nbd-server-start".into()),
            (None, name) => Err(format!("no NBD server '{}' runs", name.escape_debug())),
        }
    }

    /// Starts a server; its name must be free.
    pub(in crate::daemon) fn start_server(
        &mut self,
        name: &str,
        listener: Listener,
        poller: &mut Poller,
    ) -> Result<(), String> {
        let free = self.listenings.iter().position(Listening::is_stopped);
        let place = free.unwrap_or(self.listenings.len());
        if place >= SERVERS_MAX {
            return Err(format!("{SERVERS_MAX} NBD servers run already; stop one"));
        }
        let registration = poller.listen(&listener, token(Kind::Listener, place));
        let registration = registration.ok_or("too many connections and listeners")?;
        let server = Listening {
            name: name.to_owned(),
            listener: Some((listener, registration)),
            exports: Exported(Vec::new()),
            rest: Rest::No,
        };
        match self.listenings.get_mut(place) {
            Some(stopped) => *stopped = server,
            None => self.listenings.push(server),
        }
        Ok(())
    }

    /// Stops a server: its exports are gone, and so are its clients.
    pub(in crate::daemon) fn stop_server(
        &mut self,
        name: &str,
        now: Micros,
        volumes: &mut Awake<Volume>,
        pool: &mut HostPool,
        poller: &mut Poller,
    ) -> Result<(), String> {
        self.check_server(name)?;
        let Some(place) = self.server(name) else { return Ok(()) };
        if let Some((_, registration)) = self.listenings[place].listener.take() {
            poller.deregister(registration);
        }
        self.listenings[place].rest = Rest::No;
        self.listenings[place].exports.0.clear();
        for client in 0..self.places.len() {
            if self.places[client].listening == place {
                self.places[client].drop_off(now, volumes, pool);
            }
        }
        Ok(())
    }

    /// Exports something.
    pub(in crate::daemon) fn export(&mut self, server: &str, served: Served) -> Result<(), String> {
        self.check_server(server)?;
        if self.exports().any(|(_, other)| other.id == served.id) {
            return Err(format!("there is an export '{}' already; take another id", served.id));
        }
        let Some(place) = self.server(server) else { return Ok(()) };
        let exports = &mut self.listenings[place].exports.0;
        if exports.iter().any(|other| other.name == served.name) {
            return Err(format!(
                "an export of the name '{}' is served there already; take another name",
                served.name
            ));
        }
        if exports.len() >= EXPORTS_MAX {
            return Err(format!("the server has {EXPORTS_MAX} exports already; remove one"));
        }
        exports.push(served);
        Ok(())
    }

    /// All exports, each with its server's name.
    pub(in crate::daemon) fn exports(&self) -> impl Iterator<Item = (&str, &Served)> {
        let all = self.listenings.iter().filter(|server| !server.is_stopped());
        all.flat_map(|server| server.exports.0.iter().map(|served| (server.name.as_str(), served)))
    }

    /// Removes an export by its id. Unless `is_hard`, only one that has no client; otherwise its clients are dropped.
    pub(in crate::daemon) fn remove_export(
        &mut self,
        id: &str,
        is_hard: bool,
        now: Micros,
        volumes: &mut Awake<Volume>,
        pool: &mut HostPool,
    ) -> Result<(), String> {
        let found = self.listenings.iter().enumerate().find_map(|(place, server)| {
            let export = server.exports.0.iter().position(|served| served.id == id)?;
            Some((place, export))
        });
        let Some((place, export)) = found else {
            return Err(format!("there is no export '{}'; see query-block-exports", id.escape_debug()));
        };
        let name = self.listenings[place].exports.0[export].name.clone();
        let uses = |client: &&super::Client| client.listening == place && client.export == name;
        let count = self.places.iter().filter(uses).filter(|client| client.chosen.is_some()).count();
        if count != 0 && !is_hard {
            return Err(format!("export '{id}' has {count} client(s); with mode 'hard' they are dropped"));
        }
        self.listenings[place].exports.0.remove(export);
        for index in 0..self.places.len() {
            let client = &self.places[index];
            // One that is choosing just now knows exports by numbers that have changed.
            let is_choosing = client.connection.handshake_since().is_some();
            if client.listening == place && (client.export == name || is_choosing) {
                self.places[index].drop_off(now, volumes, pool);
            }
        }
        info!(export = name, "not exported any more");
        Ok(())
    }

    /// Whether any client uses this volume.
    pub(in crate::daemon) fn has_client_of(&self, volume: usize) -> bool {
        self.places.iter().any(|client| client.chosen.is_some_and(|(of, _)| of == volume))
    }
}

impl super::Client {
    /// Ends the connection, if there is one.
    fn drop_off(&mut self, now: Micros, volumes: &mut Awake<Volume>, pool: &mut HostPool) {
        self.connection.kick(pool);
        self.leave(false, now, volumes);
    }
}
