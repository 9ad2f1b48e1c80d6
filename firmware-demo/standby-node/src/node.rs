//! The volume: a secondary over two partitions of the card.

use embedded_sdmmc::SdCard;
use twinblock_core::block::{BlockDevice, Blocking};
use twinblock_core::control::{CommitReport, Role, VolumeReport};
use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
use twinblock_core::secondary::{Command, Input, Port, Secondary, Storage};
use twinblock_core::{CommandId, ConnectionId, Identity, Micros, Refused, Request, Windows};
use twinblock_lm3s6965::card::{CardBus, CardDevice, Spin};
use twinblock_sd::{Partition, Region};

use crate::{memory, settings};

/// The card.
pub(crate) type Card = SdCard<twinblock_lm3s6965::card::Card, Spin>;
type Disk = Blocking<Region<'static, Card>>;

/// Completions that the machine is told before others have their turn: a card does about two in a millisecond.
const COMPLETIONS_MAX: u32 = 8;

/// The machine, its devices and its memory.
pub(crate) struct Node {
    driver: Driver<Secondary<'static>, SecondaryDevices<Disk, Disk>>,
    pub(crate) memory: Windows<'static>,
    next_connection: u32,
    next_command: u32,
    /// Pieces that the machine has taken.
    pub(crate) requests: u32,
}

/// Why the node cannot begin.
#[derive(Clone, Copy, Debug, defmt::Format)]
pub(crate) enum NoNode {
    /// No card answers.
    Card,
    /// The card has no table with a first partition for the disk and a second one for its buffer.
    Partitions,
    /// The machine says no to its settings or to the partitions.
    Settings,
}

impl Node {
    /// Wakes the card and makes a secondary of it; the log tells why there is none.
    #[inline(never)]
    pub(crate) fn open(bus: CardBus) -> Option<&'static mut Self> {
        match Self::partitions(bus).and_then(|(card, disk, buffer)| Self::over(card, disk, buffer)) {
            Ok(node) => Some(node),
            Err(reason) => {
                defmt::error!("no node: {}", reason);
                None
            }
        }
    }

    #[inline(never)]
    fn partitions(bus: CardBus) -> Result<(&'static Card, Partition, Partition), NoNode> {
        let card: &'static Card = memory::CARD.init_with(|| SdCard::new(bus.open(), Spin));
        card.get_card_type().ok_or(NoNode::Card)?;
        card.spi(CardDevice::speed_up);
        match Partition::table(card).map_err(|_| NoNode::Partitions)? {
            [Some(disk), Some(buffer), ..] => Ok((card, disk, buffer)),
            _ => Err(NoNode::Partitions),
        }
    }

    #[inline(never)]
    fn over(card: &'static Card, disk: Partition, buffer: Partition) -> Result<&'static mut Self, NoNode> {
        let [disk, buffer] = [disk, buffer].map(|partition| Blocking::new(Region::new(card, partition)));
        let geometry = |device: &Disk| BlockDevice::<Windows<'_>>::geometry(device);
        let storage = Storage {
            table: memory::TABLE.take(),
            nodes: memory::INDEX.take(),
            connections: memory::CONNECTIONS.take(),
        };
        let machine = Secondary::new(settings::CONFIG, geometry(&disk), geometry(&buffer), storage)
            .map_err(|_| NoNode::Settings)?;
        let windows = Windows::new(memory::WINDOWS.take(), settings::CONFIG.window_bytes);
        let driver = Driver::new(machine, SecondaryDevices { disk, buffer });
        Ok(memory::NODE.init(Self {
            driver,
            memory: windows,
            next_connection: 0,
            next_command: 0,
            requests: 0,
        }))
    }

    pub(crate) const fn machine(&self) -> &Secondary<'static> {
        self.driver.machine()
    }

    /// A client has chosen an export.
    pub(crate) fn open_connection(
        &mut self,
        now: Micros,
        port: Port,
        identity: Option<Identity>,
    ) -> Result<ConnectionId, Refused> {
        self.next_connection = self.next_connection.wrapping_add(1);
        let connection = ConnectionId(self.next_connection);
        self.driver.offer(now, Input::Opened { connection, port, identity }).map(|()| connection)
    }

    pub(crate) fn close_connection(&mut self, now: Micros, connection: ConnectionId, is_clean: bool) {
        // One that the machine does not know any more is closed already.
        let _ = self.driver.offer(now, Input::Closed { connection, is_clean });
    }

    pub(crate) fn request(
        &mut self,
        now: Micros,
        connection: ConnectionId,
        request: Request,
    ) -> Result<(), Refused> {
        self.driver.offer(now, Input::Request(connection, request))?;
        self.requests = self.requests.wrapping_add(1);
        Ok(())
    }

    pub(crate) fn command(&mut self, now: Micros, command: Command) -> Result<CommandId, Refused> {
        self.next_command = self.next_command.wrapping_add(1);
        let id = CommandId(self.next_command);
        self.driver.offer(now, Input::Command(id, command)).map(|()| id)
    }

    /// Works, up to the next thing that concerns somebody else. `None` when nothing is left to do, or when others should
    /// have their turn: `budget` is 0 then.
    pub(crate) fn work(&mut self, now: Micros, budget: &mut u32) -> Option<Emitted> {
        self.driver.poll_within(now, &mut self.memory, budget)
    }

    pub(crate) const fn budget() -> u32 {
        COMPLETIONS_MAX
    }

    /// What `query-replication` tells of it.
    pub(crate) fn report(&self) -> VolumeReport<'static> {
        let machine = self.machine();
        VolumeReport {
            name: settings::EXPORT,
            role: Role::Secondary,
            stage: machine.stage(),
            epoch: machine.epoch(),
            size_bytes: machine.size_bytes(),
            granule_bytes: machine.buffer().granule_bytes(),
            is_behind: machine.is_behind(),
            buffer: Some(machine.into()),
            commit: CommitReport::of(machine),
            checkpoint: None,
            errors: *machine.errors(),
        }
    }
}
