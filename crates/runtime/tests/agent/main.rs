//! The hub against the real agent in a machine made of namespaces, and against peers that lie. Needs root.

mod commands;
mod connection;
mod contents;
mod lab;
mod lying;
