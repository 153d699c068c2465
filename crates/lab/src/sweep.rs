//! Removes the namespaces of tests that are no more.

use std::path::Path;
use std::process::Command;

/// The namespaces of processes that do not exist any more.
pub(crate) fn dead() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(pid) = name.strip_prefix("lab-").and_then(|rest| rest.split('-').next()) else { continue };
        let ours = pid.bytes().all(|b| b.is_ascii_digit()) && !pid.is_empty();
        if ours && !Path::new("/proc").join(pid).exists() {
            // Two tests may sweep at once: the later one finds nothing.
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}
