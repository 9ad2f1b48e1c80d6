//! What a primary knows of its replicas.

use super::unflushed::Unflushed;
use super::write::Legs;
use super::{Config, Primary};
use crate::bitmap::Bitmap;
use crate::block::{Capabilities, Geometry};
use crate::{Device, Errno, ErrorKind, Event, Extent, Refused, ReplicaState};

/// One replica with its bitmaps; an array of these is borrowed by the machine.
///
/// Capacity: unit replicas, the detached ones included whose bitmaps are kept; one place and three bitmaps each; two
/// standbys take 2; when all are taken another one is refused with [`Refused::NoRoom`]; at most 32.
#[derive(Debug)]
pub struct Replica<'m> {
    pub(super) words: Option<&'m mut [u64]>,
    pub(super) dirty: Option<Bitmap<'m>>,
    pub(super) link: Link,
    pub(super) is_behind: bool,
    pub(super) unflushed: Option<Unflushed<'m>>,
    pub(super) in_flight: u16,
    pub(super) told: Option<ReplicaState>,
}

/// Whether a replica belongs to the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Link {
    /// It was never attached.
    Unused,
    /// It was detached; what it misses goes on being marked.
    Detached,
    /// It is attached and not reachable.
    Down,
    /// It is attached and reachable.
    Up,
}

/// How a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReplicaStatus {
    /// It belongs to the mirror.
    pub is_attached: bool,
    /// It is reachable.
    pub is_connected: bool,
    /// It is known to miss something.
    pub is_behind: bool,
    /// Bytes of the granules that it misses.
    pub dirty_bytes: u64,
    /// Transfers under way.
    pub in_flight: u16,
}

impl<'m> Replica<'m> {
    /// A replica with the words of its bitmaps: [`Primary::replica_words`] of them.
    #[must_use]
    pub const fn new(words: &'m mut [u64]) -> Self {
        Self {
            words: Some(words),
            dirty: None,
            link: Link::Unused,
            is_behind: false,
            unflushed: None,
            in_flight: 0,
            told: None,
        }
    }

    pub(super) fn reset(&mut self, bits: u64) -> bool {
        if let Some([dirty, recent, asked]) = self.words.take().and_then(|words| split(words, bits)) {
            self.dirty = Bitmap::new(dirty, bits);
            let unflushed = Bitmap::new(recent, bits).zip(Bitmap::new(asked, bits));
            self.unflushed = unflushed.map(|(recent, asked)| Unflushed { recent, asked });
        }
        self.unflushed.is_some() && self.dirty.as_ref().is_some_and(|dirty| dirty.bits() == bits)
    }

    pub(super) const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Becomes what another one is; `None` if there are too few words.
    #[cfg(feature = "inspect")]
    pub(super) fn copy_from(&mut self, other: &Replica<'_>) -> Option<()> {
        if let (Some(dirty), Some(unflushed)) = (&other.dirty, &other.unflushed) {
            let [words, recent, asked] = split(self.words.take()?, dirty.bits())?;
            self.dirty = Some(dirty.copied_into(words)?);
            let (recent, asked) =
                (unflushed.recent.copied_into(recent)?, unflushed.asked.copied_into(asked)?);
            self.unflushed = Some(Unflushed { recent, asked });
        }
        self.link = other.link;
        self.is_behind = other.is_behind;
        self.in_flight = other.in_flight;
        self.told = other.told;
        Some(())
    }

    pub(super) const fn is_attached(&self) -> bool {
        matches!(self.link, Link::Down | Link::Up)
    }

    const fn state(&self) -> ReplicaState {
        match (self.link, self.is_behind) {
            (Link::Up, true) => ReplicaState::Behind,
            (Link::Up, false) => ReplicaState::Current,
            _ => ReplicaState::Disconnected,
        }
    }
}

impl Primary<'_> {
    /// How many replicas there can be.
    #[must_use]
    pub const fn replica_count(&self) -> usize {
        self.replicas.len()
    }

    /// How a replica stands; `None` if there is no such place.
    #[must_use]
    pub fn replica(&self, replica: u8) -> Option<ReplicaStatus> {
        let place = self.replicas.get(usize::from(replica))?;
        let dirty = place.dirty.as_ref().map_or(0, Bitmap::count);
        let dirty_bytes = dirty.saturating_mul(u64::from(self.config.dirty_granule_bytes));
        Some(ReplicaStatus {
            is_attached: place.is_attached(),
            is_connected: place.link == Link::Up,
            is_behind: place.is_behind,
            dirty_bytes: dirty_bytes.min(self.disk.size_bytes),
            in_flight: place.in_flight,
        })
    }

    /// Whether an attached replica is known to miss something.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.replicas.iter().any(|replica| replica.is_attached() && replica.is_behind)
    }

    /// Whether replicas are attached and every one of them misses something.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let mut attached = self.replicas.iter().filter(|replica| replica.is_attached()).peekable();
        attached.peek().is_some() && attached.all(|replica| replica.is_behind)
    }

    /// Whether a replica is known to miss some of these bytes. False if there is no such place.
    #[must_use]
    pub fn misses(&self, replica: u8, extent: Extent) -> bool {
        let (first, count) = self.granules(extent);
        let dirty = self.replicas.get(usize::from(replica)).and_then(|place| place.dirty.as_ref());
        dirty.is_some_and(|dirty| dirty.is_any_set(first, count))
    }

    pub(super) fn is_reachable(&self, replica: usize) -> bool {
        self.replicas.get(replica).is_some_and(|place| place.link == Link::Up)
    }

    /// Whether a replica misses all of these granules already.
    pub(super) fn misses_all(&self, replica: usize, first: u64, count: u64) -> bool {
        let dirty = self.replicas.get(replica).and_then(|place| place.dirty.as_ref());
        dirty.is_none_or(|dirty| dirty.count() != 0 && dirty.is_all_set(first, count))
    }

    /// Notes that a replica, attached or kept in mind, misses these granules.
    pub(super) fn mark(&mut self, replica: usize, first: u64, count: u64) {
        let Some(place) = self.replicas.get_mut(replica) else { return };
        if place.link == Link::Unused {
            return;
        }
        if let Some(dirty) = &mut place.dirty {
            dirty.set_range(first, count);
        }
        self.note_behind(replica);
    }

    pub(super) fn note_behind(&mut self, replica: usize) {
        if let Some(place) = self.replicas.get_mut(replica) {
            place.is_behind = true;
            self.tell(replica);
        }
    }

    /// A replica has failed to do what it was asked. One that is shut down follows this primary no longer: it has taken over
    /// or was stopped, and nothing there is a copy of what the disk has, or has lost.
    pub(super) fn replica_failed(&mut self, device: Device, errno: Errno) {
        self.record(ErrorKind::Forward);
        if let (Device::Replica(replica), Errno::Shutdown) = (device, errno) {
            self.lost_holders = self.lost_holders.without(Legs::of(device));
            self.note_behind(replica.into());
        }
    }

    fn tell(&mut self, replica: usize) {
        let Some(place) = self.replicas.get_mut(replica) else { return };
        let state = place.state();
        if place.is_attached() && place.told != Some(state) {
            place.told = Some(state);
            self.notices.event(Event::Replica(replica as u8, state));
        }
    }

    pub(super) fn replica_submitted(&mut self, device: Device) {
        if let Device::Replica(replica) = device
            && let Some(place) = self.replicas.get_mut(usize::from(replica))
        {
            place.in_flight += 1;
        }
    }

    pub(super) fn replica_completed(&mut self, device: Device) {
        if let Device::Replica(replica) = device
            && let Some(place) = self.replicas.get_mut(usize::from(replica))
        {
            place.in_flight = place.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn check_attach(&self, replica: u8) -> Result<(), Refused> {
        let place = self.replicas.get(usize::from(replica)).ok_or(Refused::NoRoom)?;
        if place.is_attached() { Err(Refused::InProgress) } else { Ok(()) }
    }

    /// The replica belongs to the mirror from now on. A place that was used before keeps what it misses, unless another
    /// replica takes it.
    pub(super) fn attach(&mut self, replica: u8, is_empty: bool, is_new: bool) {
        let index = usize::from(replica);
        let Some(place) = self.replicas.get_mut(index) else { return };
        if let Some(dirty) = &mut place.dirty {
            if is_new || place.link == Link::Unused {
                if let Some(unflushed) = &mut place.unflushed {
                    unflushed.clear();
                }
                dirty.clear_all();
                dirty.union_with(&self.written);
                place.is_behind = dirty.count() != 0;
            }
            if is_empty {
                dirty.set_all();
                place.is_behind = true;
            }
        }
        place.link = Link::Down;
        place.told = None;
        self.tell(index);
    }

    pub(super) fn detach(&mut self, replica: u8) {
        let index = usize::from(replica);
        self.lost_holders = self.lost_holders.without(Legs::of(Device::Replica(replica)));
        if let Some(place) = self.replicas.get_mut(index) {
            place.link = Link::Detached;
        }
    }

    /// The link is up. Sizes are compared each time.
    pub(super) fn connected(&mut self, replica: u8, geometry: &Geometry) -> Result<(), Refused> {
        let index = usize::from(replica);
        let place = self.replicas.get_mut(index).filter(|place| place.is_attached()).ok_or(Refused::Stale)?;
        check_geometry(&self.config, self.disk.size_bytes, geometry)?;
        place.link = Link::Up;
        self.tell(index);
        Ok(())
    }

    pub(super) fn disconnected(&mut self, replica: u8) -> Result<(), Refused> {
        let index = usize::from(replica);
        let place = self.replicas.get_mut(index).filter(|place| place.is_attached()).ok_or(Refused::Stale)?;
        place.link = Link::Down;
        self.tell(index);
        Ok(())
    }

    pub(super) fn missing(&mut self, replica: u8) -> Result<(), Refused> {
        let place = self.replicas.get(usize::from(replica)).filter(|place| place.is_attached());
        place.ok_or(Refused::Stale)?;
        self.note_behind(usize::from(replica));
        Ok(())
    }
}

/// Words for the three bitmaps of a replica.
fn split(words: &mut [u64], bits: u64) -> Option<[&mut [u64]; 3]> {
    let each = Bitmap::words_for(bits);
    let (one, rest) = words.split_at_mut_checked(each)?;
    let (two, three) = rest.split_at_mut_checked(each)?;
    Some([one, two, three])
}

fn check_geometry(config: &Config, here_bytes: u64, geometry: &Geometry) -> Result<(), Refused> {
    if geometry.size_bytes != here_bytes {
        return Err(Refused::SizeDiffers { here_bytes, there_bytes: geometry.size_bytes });
    }
    let is_read_only = geometry.capabilities.contains(Capabilities::READ_ONLY);
    if is_read_only || geometry.block_bytes > config.block_bytes {
        return Err(Refused::Unsuitable);
    }
    Ok(())
}
