//! Commits of several volumes of this node: together or not at all, so that their guests' views stay of one moment.
//!
//! A primary tells each volume to commit by a message of its own, and in each how many there are. Were the first one carried
//! out at once, a link that is lost between two of them would leave the views of different moments.

use twinblock_core::{Refused, node, secondary};

use super::super::Daemon;
use super::super::managers::{ManagerId, Managers};
use super::Asker;

/// A commit that waits for those of other volumes.
#[derive(Debug)]
pub(in super::super) struct HeldCommit {
    pub(super) asker: Asker,
    pub(super) volume: usize,
    pub(super) wanted: secondary::Command,
}

impl HeldCommit {
    fn is_of(&self, manager: ManagerId) -> bool {
        self.asker.manager == manager
    }
}

impl Daemon {
    /// A primary tells a volume to commit together with as many as it says.
    pub(super) fn commit(&mut self, commit: HeldCommit, together: u16) {
        let (manager, volume) = (commit.asker.manager, commit.volume);
        if self.commits.iter().any(|held| held.is_of(manager) && held.volume == volume) {
            let name = self.volumes[volume].name.clone();
            return self.refuse(&commit.asker, Refused::InProgress, &name);
        }
        self.commits.push(commit);
        if self.commits.iter().filter(|held| held.is_of(manager)).count() < usize::from(together) {
            return;
        }
        let mut mine = self.commits.iter().filter(|held| held.is_of(manager));
        let refusing = mine.find_map(|held| {
            let checked =
                self.volumes[held.volume].standby(|machine| node::check_commits([(machine, held.wanted)]));
            checked.and_then(Result::err).map(|(_, refused)| (held.volume, refused))
        });
        if let Some((volume, refused)) = refusing {
            return self.refuse_commits(manager, volume, refused);
        }
        while let Some(commit) = self.take_commit(|held| held.is_of(manager)) {
            self.order_secondary(commit.asker, commit.volume, commit.wanted);
        }
    }

    /// The volume that refuses tells why, and first; the others have nothing against it.
    fn refuse_commits(&mut self, manager: ManagerId, volume: usize, refused: Refused) {
        let name = self.volumes[volume].name.clone();
        if let Some(commit) = self.take_commit(|held| held.is_of(manager) && held.volume == volume) {
            self.refuse(&commit.asker, refused, &name);
        }
        while let Some(commit) = self.take_commit(|held| held.is_of(manager)) {
            let other = &self.volumes[commit.volume].name;
            let text = format!("volume '{other}' commits together with volume '{name}', which refuses");
            self.fail(&commit.asker, &text);
        }
    }

    /// Commits that the rest is not waited for any more are refused.
    pub(super) fn drop_commits(&mut self, is_it: impl Fn(&Managers, ManagerId) -> bool) {
        loop {
            let managers = &self.managers;
            let found = self.commits.iter().position(|held| is_it(managers, held.asker.manager));
            let Some(place) = found else { return };
            let commit = self.commits.remove(place);
            let name = self.volumes[commit.volume].name.clone();
            self.refuse(&commit.asker, Refused::Stale, &name);
        }
    }

    fn take_commit(&mut self, is_it: impl Fn(&HeldCommit) -> bool) -> Option<HeldCommit> {
        let place = self.commits.iter().position(is_it)?;
        Some(self.commits.remove(place))
    }
}
