//! Builds the guest agent as a static binary, so that building the daemon needs no step of its own.
//!
//! The nested cargo has its own target directory (two cargos cannot share one), the workspace's lock file, and none
//! of the settings that the outer one was given for the outer build.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Settings of the outer build that do not concern the agent. What ends with `_` is a prefix.
const OUTER: &[&str] = &[
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "TARGET",
    "HOST",
    "PROFILE",
    "OPT_LEVEL",
    "DEBUG",
    "OUT_DIR",
    "LLVM_PROFILE_FILE",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_MANIFEST_",
    "CARGO_BUILD_",
    "CARGO_TARGET_",
    "CARGO_PKG_",
    "CARGO_CFG_",
    "CARGO_FEATURE_",
    "CARGO_CRATE_",
    "DEP_",
];

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    let (out, target) = (PathBuf::from(variable("OUT_DIR")).join("guest"), variable("TARGET"));
    assert!(target.ends_with("-linux-gnu"), "the agent is built for Linux with glibc, not for {target}");
    for path in ["crates/guest/src", "crates/guest/Cargo.toml", "crates/model/src", "crates/model/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for path in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let outer = name.to_str().is_some_and(|name| {
            OUTER.iter().any(|outer| name == *outer || outer.ends_with('_') && name.starts_with(outer))
        });
        if outer {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(&workspace).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--package", "warren-guest", "--bin", "warren-guest", "--profile", "guest"]);
    cargo.args(["--target", &target]).arg("--target-dir").arg(&out);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo did not start: {error}"));
    assert!(status.success(), "the agent of crates/guest was not built: {status}");
    let binary = out.join(&target).join("guest/warren-guest");
    println!("cargo::rustc-env=WARREN_GUEST_BINARY={}", binary.display());
}
