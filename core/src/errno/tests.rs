use super::Errno;

#[test]
fn every_error_has_its_number_and_its_name_on_the_wire() {
    let table = [
        (Errno::NotPermitted, 1, "EPERM"),
        (Errno::Io, 5, "EIO"),
        (Errno::NoMemory, 12, "ENOMEM"),
        (Errno::Invalid, 22, "EINVAL"),
        (Errno::NoSpace, 28, "ENOSPC"),
        (Errno::Overflow, 75, "EOVERFLOW"),
        (Errno::Unsupported, 95, "ENOTSUP"),
        (Errno::Shutdown, 108, "ESHUTDOWN"),
    ];
    for (errno, number, name) in table {
        assert_eq!((errno.number(), Errno::from_number(number), errno.name()), (number, errno, name));
    }
    assert!([0, 2, 6, 109, u32::MAX].into_iter().all(|number| Errno::from_number(number) == Errno::Invalid));
}
