//! A secondary over two disks in RAM, on the target: what its primary writes, what its guest sees, a checkpoint and a
//! failover.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use twinblock_core::secondary::Command;
    use twinblock_core::{Errno, Stage};
    use twinblock_on_target::{GUEST, Node, PRIMARY};

    #[init]
    fn init() -> Node {
        Node::take()
    }

    #[test]
    fn the_guest_can_do_nothing_before_the_start(mut node: Node) {
        assert_eq!(node.write(GUEST, 0, 512, 9), Err(Errno::Io));
        assert_eq!(node.reads(GUEST, 0, 512, 1), Err(Errno::Io));
    }

    #[test]
    fn write_guest_view_checkpoint_and_failover(mut node: Node) {
        node.start();
        // The primary's write goes to the disk and not into the view, whatever part of a granule it is.
        node.write(PRIMARY, 100, 1500, 2).unwrap();
        assert!(node.disk_holds(100, 1500, 2));
        assert_eq!(node.reads(GUEST, 0, 2048, 1), Ok(true));
        assert_eq!(node.reads(PRIMARY, 100, 1500, 2), Ok(true));
        // The guest's writes go into the view and not to the disk.
        node.write(GUEST, 4096, 600, 3).unwrap();
        assert_eq!(node.reads(GUEST, 4096, 600, 3), Ok(true));
        assert_eq!(node.reads(GUEST, 4696, 500, 1), Ok(true));
        assert!(node.disk_holds(4096, 1100, 1));
        // A checkpoint makes the disk the view.
        node.command(Command::Checkpoint { force: false }).unwrap();
        assert_eq!(node.reads(GUEST, 100, 1500, 2), Ok(true));
        assert_eq!(node.reads(GUEST, 4096, 1100, 1), Ok(true));
        assert_eq!(node.driver.machine().buffer().used_bytes(), 0);
        // A failover leaves the checkpoint and what the guest has written since.
        node.write(PRIMARY, 0, 1024, 4).unwrap();
        node.write(GUEST, 8192, 512, 5).unwrap();
        node.command(Command::Stop { failover: true, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(0, 100, 1) && node.disk_holds(100, 924, 2));
        assert!(node.disk_holds(8192, 512, 5));
        assert_eq!(node.reads(GUEST, 8192, 512, 5), Ok(true));
        assert_eq!(node.write(PRIMARY, 0, 512, 6), Err(Errno::Shutdown));

        twinblock_on_target::print_stack_use();
    }

    #[test]
    fn a_stop_without_failover_leaves_what_the_primary_wrote(mut node: Node) {
        node.start();
        node.write(PRIMARY, 0, 1024, 4).unwrap();
        node.write(GUEST, 0, 2048, 5).unwrap();
        node.command(Command::Stop { failover: false, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(0, 1024, 4) && node.disk_holds(1024, 1024, 1));
        assert_eq!(node.reads(GUEST, 0, 1024, 4), Ok(true));
    }

    #[test]
    fn a_disk_that_fails_in_the_commit_can_be_tried_again(mut node: Node) {
        node.start();
        node.write(GUEST, 1024, 512, 7).unwrap();
        node.driver.devices_mut().disk.disk_mut().next_write = Some(Errno::Io);
        // Whether the answer comes before or after the commit has met the error, the stage tells.
        let _ = node.command(Command::Stop { failover: true, force: false });
        assert_eq!(node.driver.machine().stage(), Stage::FailoverFailed);
        assert_eq!(node.reads(GUEST, 1024, 512, 7), Ok(true));
        node.command(Command::Stop { failover: true, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(1024, 512, 7));
    }
}
