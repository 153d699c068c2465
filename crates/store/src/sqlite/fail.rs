//! Points at which a test can end the process, one between any two steps of the writer. Nothing outside of tests.

/// Every point there is; a test walks them all.
#[cfg(test)]
pub(super) const POINTS: &[&str] = &[
    "migration-applied",
    "migration-numbered",
    "migration-committed",
    "group-begun",
    "compares-held",
    "entry-changed",
    "change-recorded",
    "job-applied",
    "lease-stored",
    "lease-renewed",
    "lease-keys-deleted",
    "lease-deleted",
    "history-cut",
    "history-deleted",
    "ledger-written",
    "group-committed",
    "group-published",
    "group-answered",
];

/// Names the point at which the process is to end and how many times it passes before, as `name:count`.
#[cfg(test)]
pub(super) const VARIABLE: &str = "WARREN_STORE_END_AT";

#[cfg(not(test))]
#[inline(always)]
pub(super) fn point(_name: &'static str) {}

#[cfg(test)]
pub(super) fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static END: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();

    assert!(POINTS.contains(&name), "{name} is missing from the list");
    let end = END.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, count) = text.split_once(':')?;
        Some((name.to_owned(), AtomicI64::new(count.parse().ok()?)))
    });
    if let Some((chosen, left)) = end
        && chosen == name
        && left.fetch_sub(1, Ordering::Relaxed) == 0
    {
        std::process::abort();
    }
}
