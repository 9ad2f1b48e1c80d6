use std::collections::VecDeque;
use std::vec::Vec;
use std::{assert, assert_eq, vec};

use super::{Devices, Driver, Emitted, Machine, PrimaryDevices, SecondaryDevices, Shared};
use crate::block::{Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Tag, Transfer};
use crate::{
    BufferIndex, Data, Device, Errno, Event, Extent, Memory, Micros, Notice, Outcome, Output, Refused, Reply,
    RequestId, Windows,
};

const NOW: Micros = Micros(10);
const DONE: Result<Outcome, Errno> = Ok(Outcome::Done);

/// A machine that gives out what a test has put in, and notes what it hears.
#[derive(Default)]
struct Script {
    outputs: VecDeque<Output>,
    heard: Vec<(Micros, Device, u16)>,
    inputs: Vec<(Micros, u32)>,
    timeout: Option<Micros>,
    timeouts: Vec<Micros>,
}

impl Machine for Script {
    type Input = u32;

    fn handle_input(&mut self, now: Micros, input: u32) -> Result<(), Refused> {
        self.inputs.push((now, input));
        if input == 0 { Err(Refused::Busy) } else { Ok(()) }
    }

    fn handle_completion(
        &mut self,
        now: Micros,
        device: Device,
        completion: Completion,
    ) -> Result<(), Refused> {
        self.heard.push((now, device, completion.tag.entry));
        if completion.tag.generation == 0 { Err(Refused::Stale) } else { Ok(()) }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Micros> {
        self.timeout
    }

    fn handle_timeout(&mut self, now: Micros) {
        self.timeouts.push(now);
        self.timeout = None;
    }
}

/// A device that takes so many transfers at a time and completes the oldest first.
#[derive(Default)]
struct Queue {
    room: usize,
    taken: VecDeque<Transfer>,
}

impl<M: Memory + ?Sized> BlockDevice<M> for Queue {
    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: 4096, block_bytes: 1, capabilities: Capabilities::empty() }
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut M) -> Result<(), QueueFull> {
        if self.taken.len() == self.room {
            return Err(QueueFull);
        }
        self.taken.push_back(transfer);
        Ok(())
    }

    fn poll(&mut self, _memory: &mut M) -> Option<Completion> {
        let transfer = self.taken.pop_front()?;
        Some(Completion { tag: transfer.tag, result: DONE })
    }
}

fn queue(room: usize) -> Queue {
    Queue { room, ..Queue::default() }
}

fn flush(entry: u16, generation: u32) -> Transfer {
    Transfer { tag: Tag { entry, generation }, action: Action::Flush, extent: Extent::default() }
}

fn reply(id: u32) -> Reply {
    Reply { id: RequestId(id), result: DONE }
}

fn script(outputs: &[Output]) -> Script {
    Script { outputs: outputs.iter().copied().collect(), ..Script::default() }
}

#[test]
fn transfers_go_to_their_devices_and_completions_come_back_named() {
    let devices = SecondaryDevices { disk: queue(4), buffer: queue(4) };
    let outputs =
        [Output::Transfer(Device::Disk, flush(1, 1)), Output::Transfer(Device::Buffer, flush(2, 1))];
    let mut driver = Driver::new(script(&outputs), devices);
    let mut memory = Windows::new(&mut [], 1);
    assert_eq!(driver.poll(NOW, &mut memory), None);
    assert_eq!(driver.machine().heard, [(NOW, Device::Buffer, 2), (NOW, Device::Disk, 1)]);
    assert_eq!(driver.stale_completions(), 0);
    driver.machine_mut().outputs.push_back(Output::Transfer(Device::Disk, flush(3, 0)));
    assert_eq!(driver.poll(NOW, &mut memory), None);
    assert_eq!(driver.stale_completions(), 1);
}

#[test]
fn what_only_the_embedder_can_do_is_handed_out_in_order_and_zeroes_are_filled_in() {
    let notice = Notice::Event(Event::BufferFull);
    let data = Data { buffer: BufferIndex(1), offset: 2, length: 3 };
    let nowhere = Data { buffer: BufferIndex(9), ..data };
    let outputs =
        [Output::Reply(reply(1)), Output::Fill(nowhere), Output::Fill(data), Output::Notice(notice)];
    let mut driver = Driver::new(script(&outputs), SecondaryDevices { disk: queue(0), buffer: queue(0) });
    let mut bytes = [1; 16];
    let mut memory = Windows::new(&mut bytes, 8);
    assert_eq!(driver.poll(NOW, &mut memory), Some(Emitted::Reply(reply(1))));
    assert_eq!(memory.bytes(data).unwrap(), [1; 3]);
    assert_eq!(driver.poll(NOW, &mut memory), Some(Emitted::Notice(notice)));
    assert_eq!(driver.poll(NOW, &mut memory), None);
    assert_eq!(bytes, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn a_transfer_that_a_full_queue_did_not_take_is_submitted_again_before_anything_else() {
    let transfer = |entry| Output::Transfer(Device::Disk, flush(entry, 1));
    let outputs = [transfer(1), transfer(2), transfer(3), Output::Reply(reply(7))];
    let mut driver = Driver::new(script(&outputs), SecondaryDevices { disk: queue(1), buffer: queue(0) });
    let mut memory = Windows::new(&mut [], 1);
    assert_eq!(driver.poll(NOW, &mut memory), Some(Emitted::Reply(reply(7))));
    assert_eq!(driver.machine().heard, [(NOW, Device::Disk, 1), (NOW, Device::Disk, 2)]);
    assert_eq!(driver.poll(NOW, &mut memory), None);
    assert_eq!(driver.machine().heard.len(), 3);
}

#[test]
fn each_completion_takes_one_off_the_budget_and_none_is_taken_without() {
    let outputs = [1, 2, 3].map(|entry| Output::Transfer(Device::Disk, flush(entry, 1)));
    let mut driver = Driver::new(script(&outputs), SecondaryDevices { disk: queue(4), buffer: queue(0) });
    let mut memory = Windows::new(&mut [], 1);
    let mut budget = 2;
    assert_eq!(driver.poll_within(NOW, &mut memory, &mut budget), None);
    assert_eq!((driver.machine().heard.len(), budget), (2, 0));
    let mut budget = 5;
    assert_eq!(driver.poll_within(NOW, &mut memory, &mut budget), None);
    assert_eq!(
        (driver.machine().heard.len(), budget),
        (3, 3),
        "one for the completion, one for the last look"
    );
}

#[test]
fn a_timeout_is_handled_when_it_is_due_and_not_before() {
    let mut driver = Driver::new(script(&[]), SecondaryDevices { disk: queue(0), buffer: queue(0) });
    let mut memory = Windows::new(&mut [], 1);
    driver.machine_mut().timeout = Some(Micros(11));
    assert_eq!(driver.poll_timeout(), Some(Micros(11)));
    driver.poll(NOW, &mut memory);
    assert!(driver.machine().timeouts.is_empty());
    driver.poll(Micros(11), &mut memory);
    assert_eq!(driver.machine().timeouts, [Micros(11)]);
    assert_eq!(driver.poll_timeout(), None);
}

#[test]
fn an_input_is_offered_to_the_machine_and_its_answer_is_told() {
    let mut driver = Driver::new(script(&[]), SecondaryDevices { disk: queue(0), buffer: queue(3) });
    assert_eq!(driver.offer(NOW, 5), Ok(()));
    assert_eq!(driver.offer(Micros(12), 0), Err(Refused::Busy));
    assert_eq!(driver.machine().inputs, [(NOW, 5), (Micros(12), 0)]);
    driver.devices_mut().disk.room = 9;
    assert_eq!((driver.devices().disk.room, driver.devices().buffer.room), (9, 3));
}

#[test]
fn a_primarys_devices_are_found_by_index_and_one_that_is_not_there_fails() {
    let mut devices = PrimaryDevices::new(queue(4), [queue(4), queue(4)]);
    let mut memory = Windows::new(&mut [], 1);
    for (device, entry) in [(Device::Disk, 0), (Device::Replica(0), 1), (Device::Replica(1), 2)] {
        assert_eq!(devices.submit(device, flush(entry, 1), &mut memory), Ok(()));
    }
    assert_eq!(devices.submit(Device::Replica(2), flush(3, 1), &mut memory), Ok(()));
    assert_eq!(devices.submit(Device::Replica(2), flush(4, 1), &mut memory), Err(QueueFull), "one at a time");
    let mut completed = vec![];
    while let Some((device, completion)) = devices.poll(&mut memory) {
        completed.push((device, completion.tag.entry, completion.result));
    }
    let expected = [
        (Device::Replica(2), 3, Err(Errno::Io)),
        // A link that sends when it is polled has sent before the disk begins.
        (Device::Replica(0), 1, DONE),
        (Device::Replica(1), 2, DONE),
        (Device::Disk, 0, DONE),
    ];
    assert_eq!(completed, expected);
    let mut links = [queue(1)];
    let mut borrowed = PrimaryDevices::new(queue(0), links.as_mut_slice());
    assert_eq!(borrowed.submit(Device::Replica(0), flush(1, 1), &mut memory), Ok(()));
    assert_eq!(borrowed.submit(Device::Disk, flush(1, 1), &mut memory), Err(QueueFull));
}

#[test]
fn a_shared_driver_is_had_by_one_at_a_time() {
    let shared = Shared::new(1);
    assert_eq!(shared.with(|value| core::mem::replace(value, 2)), 1);
    assert_eq!(shared.try_with(|value| *value), Some(2));
    shared.with(|_| assert_eq!(shared.try_with(|value| *value), None));
}
