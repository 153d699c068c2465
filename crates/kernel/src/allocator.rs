//! The memory that this process holds of the kernel.

use nix::libc;

/// How many heaps threads share. More of them keep more that nobody uses.
const HEAPS: libc::c_int = 2;
/// Bytes from which on a block is mapped by itself, and given back as soon as it is freed. What a daemon makes for a
/// moment, such as a network's snapshot, is larger; glibc would raise its limit with the first of these.
const MAPPED: libc::c_int = 64 << 10;
/// Unused bytes at the end of a heap from which on they are given back.
const TRIMMED: libc::c_int = 64 << 10;

/// Has glibc give memory back when it is not used, instead of keeping it for the next peak (mallopt(3)). To be called
/// before there are threads. False where the allocator does not take it.
pub fn return_unused_memory() -> bool {
    let options = [(libc::M_ARENA_MAX, HEAPS), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, TRIMMED)];
    // SAFETY: mallopt takes two numbers, and refuses those that it does not know.
    options.into_iter().all(|(option, value)| unsafe { libc::mallopt(option, value) } == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_takes_the_options() {
        assert!(return_unused_memory());
    }
}
