//! The ingress over loopback, with real clients and machines.

mod lab;

mod limits;
mod passing;
mod plain;
mod smuggling;
mod snapshots;
mod tls;
mod uploads;
mod websocket;
