//! Policy as a whole: what is read, judged, compiled, tested and suggested.

mod arbitrary;
mod check;
mod claim;
mod common;
mod compile;
mod compile_property;
mod evaluate;
mod evaluate_property;
mod kubernetes;
mod large;
mod read;
mod reference;
mod router;
mod schema;
mod suggest;
