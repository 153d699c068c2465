//! How far a long operation has come, on stderr: a bar for a person, plain lines for a log.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::note;
use super::render::printable;

/// The progress of something that goes through stages.
pub struct StageBar {
    bar: ProgressBar,
    name: String,
    quiet: bool,
    /// What was last said in a plain line.
    said: String,
}

impl StageBar {
    /// `name` is what goes on; `quiet` shows nothing.
    pub fn new(name: &str, quiet: bool) -> Self {
        let (bar, name) = (ProgressBar::with_draw_target(Some(1000), target(quiet)), printable(name));
        bar.set_style(style("{spinner} {prefix} [{bar:30}] {percent:>3}% {wide_msg}"));
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name, quiet, said: String::new() }
    }

    /// `fraction` is from 0.0 to 1.0; `None` leaves the bar where it is.
    pub fn show(&mut self, stage: &str, fraction: Option<f32>) {
        if let Some(fraction) = fraction {
            self.bar.set_position((f64::from(fraction.clamp(0.0, 1.0)) * 1000.0) as u64);
        }
        self.bar.set_message(printable(stage));
        if !self.quiet && self.bar.is_hidden() && self.said != stage {
            note(&format!("{}: {}", self.name, printable(stage)));
            stage.clone_into(&mut self.said);
        }
    }
}

impl Drop for StageBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of a copy: bytes, out of a total where it is known. Only shown on a terminal.
pub fn copy_bar(total: Option<u64>, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, target(quiet));
    bar.set_style(match total {
        Some(_) => style("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => style("{spinner} {msg} {bytes} {bytes_per_sec}"),
    });
    bar
}

fn target(quiet: bool) -> ProgressDrawTarget {
    // Draws nothing by itself where stderr is no terminal.
    if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ").tick_chars("-\\|/ ")
}
