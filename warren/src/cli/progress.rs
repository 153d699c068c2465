//! How far a long operation has come, on stderr: a bar for a person, plain lines for a log.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use warren_model::access::ImageProgress;

use super::output::note;
use super::render::printable;

/// The progress of an image.
pub struct ImageBar {
    bar: ProgressBar,
    name: String,
    quiet: bool,
    /// What was last said in a plain line.
    said: String,
}

impl ImageBar {
    /// `quiet` shows nothing.
    pub fn new(name: &str, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(1000), target(quiet));
        bar.set_style(style("{spinner} {prefix} [{bar:30}] {percent:>3}% {wide_msg}"));
        bar.set_prefix(printable(name));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name: name.to_owned(), quiet, said: String::new() }
    }

    pub fn show(&mut self, progress: &ImageProgress) {
        if let Some(fraction) = progress.fraction {
            self.bar.set_position((f64::from(fraction.clamp(0.0, 1.0)) * 1000.0) as u64);
        }
        self.bar.set_message(printable(&progress.stage));
        if !self.quiet && self.bar.is_hidden() && self.said != progress.stage {
            note(&format!("{}: {}", printable(&self.name), printable(&progress.stage)));
            self.said.clone_from(&progress.stage);
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for ImageBar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The progress of an audit.
pub struct AuditBar {
    bar: ProgressBar,
    quiet: bool,
    said: String,
}

impl AuditBar {
    /// `quiet` shows nothing.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(1000), target(quiet));
        bar.set_style(style("{spinner} audit [{bar:30}] {percent:>3}% {wide_msg}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, quiet, said: String::new() }
    }

    pub fn show(&mut self, stage: &str, fraction: f32) {
        self.bar.set_position((f64::from(fraction.clamp(0.0, 1.0)) * 1000.0) as u64);
        self.bar.set_message(printable(stage));
        if !self.quiet && self.bar.is_hidden() && self.said != stage {
            note(&format!("audit: {}", printable(stage)));
            stage.clone_into(&mut self.said);
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for AuditBar {
    fn drop(&mut self) {
        self.clear();
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
