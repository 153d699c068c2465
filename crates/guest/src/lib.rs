//! What the agent in a machine and the host say to each other.
//!
//! The agent is PID 1 in every machine. It dials the host over one byte stream (a Unix socket in a directory that
//! the host mounted into the machine) and is then the HTTP/2 *server* on it; the host asks. When the stream ends
//! it dials again, for ever.
//!
//! | module | holds |
//! | --- | --- |
//! | [`protocol`] | the operations, their requests and answers, and every limit |
//! | [`frame`] | the frames inside a streaming request or answer |
//! | [`stream`] | sending and receiving with HTTP/2 flow control |

pub mod frame;
pub mod protocol;
pub mod stream;
