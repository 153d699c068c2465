//! What is done to one machine or to several, or to other things with names: all of them are tried, a few at a time.

use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};
use warren_model::wire::{Machine, Page};

use crate::cli::Context;
use crate::cli::failure::{self, Failure};
use crate::cli::output::{note, read};
use crate::client::error::ClientError;
use crate::client::route::Route;

/// How many are under way at once.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Machines {
    /// Their names or ids
    #[arg(required = true, value_name = "MACHINE")]
    pub machines: Vec<String>,
}

pub async fn power(context: &Context, machines: Machines, verb: &str) -> Result<(), Failure> {
    let act = async |machine: &str| context.client.post_empty(&Route::new(&["machines", machine, verb])).await;
    each(context, machines.machines, act, |_, answer| {
        let machine: Machine = read(answer)?;
        Ok(format!("{} is {}", machine.name, machine.state.as_str()))
    })
    .await
}

pub async fn remove(context: &Context, machines: Machines) -> Result<(), Failure> {
    let one = machines.machines.len() == 1;
    let act = async |machine: &str| {
        let answer = context.client.delete(&Route::new(&["machines", machine])).await?;
        // The server has nothing to say; of several, it is told which.
        Ok(match answer {
            Value::Null if one => json!({}),
            Value::Null => json!({ "machine": machine }),
            answer => answer,
        })
    };
    each(context, machines.machines, act, |machine, _| Ok(format!("removed {machine}"))).await
}

/// Tries all, in the order of the names. One that fails is reported, and the others are tried all the same; the exit
/// status is that of the first failure. With `--json`, one is an object, and several are a list of those that were done.
pub async fn each(
    context: &Context,
    names: Vec<String>,
    act: impl AsyncFn(&str) -> Result<Value, ClientError>,
    say: impl Fn(&str, Value) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let output = context.output;
    let several = names.len() > 1;
    let act = &act;
    let tried = names.iter().map(|name| async move { (name, act(name).await) });
    let mut outcomes = futures::stream::iter(tried).buffered(AT_ONCE);
    let (mut done, mut status) = (Vec::new(), failure::DONE);
    while let Some((name, outcome)) = outcomes.next().await {
        match outcome {
            Ok(answer) if !output.json => output.text(&say(name, answer)?)?,
            Ok(answer) => done.push(answer),
            Err(error) if !several => return Err(error.into()),
            Err(error) => {
                let failure = Failure::from(error);
                failure.report(output.json).iter().for_each(|report| note(report));
                if status == failure::DONE {
                    status = failure.exit_status();
                }
            }
        }
    }
    if output.json {
        match (several, done.pop()) {
            (false, Some(answer)) => output.json(&answer)?,
            (_, last) => {
                done.extend(last);
                output.json(&Page { items: done, next: None })?;
            }
        }
    }
    if status == failure::DONE { Ok(()) } else { Err(Failure::Silent(status)) }
}
