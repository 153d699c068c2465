//! Points at which tests end the process, to show that it may die anywhere.
//!
//! Only builds with debug assertions look: `WARREN_CRASH_AT=before:create-disk` aborts the process the first
//! time it gets there, or the first time after the file appeared that `WARREN_CRASH_ARMED` names.

use warren_plan::machine::MachineStep;
use warren_plan::network::NetworkStep;

/// The variable that names the point.
pub const VARIABLE: &str = "WARREN_CRASH_AT";
/// The variable that names a file without which the point is passed by.
pub const ARMED: &str = "WARREN_CRASH_ARMED";

/// Every point in the lives of machines and networks.
pub fn points() -> Vec<String> {
    let machine = MachineStep::ALL.iter().map(|step| step.as_str().to_owned());
    let network = NetworkStep::NAMES.iter().map(|step| format!("network-{step}"));
    let status = ["status".to_owned()];
    machine.chain(network).chain(status).flat_map(|step| [format!("before:{step}"), format!("after:{step}")]).collect()
}

/// Every point on the way to what is public.
pub fn public_points() -> Vec<String> {
    let steps = ["public-listen", "public-dialers", "public-put"];
    steps.iter().flat_map(|step| [format!("before:{step}"), format!("after:{step}")]).collect()
}

/// Ends the process if a test asked for it here.
pub(crate) fn point(when: &str, scope: &str, step: &str) {
    #[cfg(debug_assertions)]
    {
        use std::sync::OnceLock;
        static ASKED: OnceLock<Option<String>> = OnceLock::new();
        if let Some(asked) = ASKED.get_or_init(|| std::env::var(VARIABLE).ok())
            && *asked == format!("{when}:{scope}{step}")
            && std::env::var_os(ARMED).is_none_or(|file| std::path::Path::new(&file).exists())
        {
            // abort() raises SIGABRT without unwinding and without running any destructor.
            std::process::abort();
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = (when, scope, step);
}
