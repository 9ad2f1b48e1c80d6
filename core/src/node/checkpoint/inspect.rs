//! A coordinator as programs see it that walk through every state.

use core::hash::{Hash, Hasher};

use super::{Coordinator, Member, Volume};

impl Coordinator<'_> {
    /// This coordinator once more, in other memory; the two then go their own ways. `None` if that memory has not the
    /// shape of the one which this coordinator was made with.
    #[must_use]
    pub fn copied_into<'n>(
        &self,
        volumes: &'n mut [Volume],
        members: &'n mut [Member],
    ) -> Option<Coordinator<'n>> {
        if volumes.len() != self.volumes.len() || members.len() != self.members.len() {
            return None;
        }
        volumes.copy_from_slice(self.volumes);
        members.copy_from_slice(self.members);
        Some(Coordinator {
            volumes,
            members,
            state: self.state,
            timeout: self.timeout,
            missing: self.missing,
            has_news: self.has_news,
        })
    }
}

/// Settings are left out, as they do not change. Coordinators with equal hashes that were made alike go on alike.
impl Hash for Coordinator<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { volumes, members, state: step, timeout: _, missing, has_news } = self;
        (volumes, members, step, missing, has_news).hash(state);
    }
}
