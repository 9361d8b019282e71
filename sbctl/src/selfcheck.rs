//! `sbctl selfcheck`: the engine compared with itself on a guest.

use crate::environment::Environment;
use crate::exit::{Exit, Usage};
use crate::quantity::Count;
use crate::run::{Execution, execute};
use anyhow::Result;
use clap::Args;
use tcg_sim::selfcheck::Plan;

/// Options of `sbctl selfcheck`.
#[derive(Debug, Args)]
pub(crate) struct SelfcheckArguments {
    #[command(flatten)]
    execution: Execution,
    /// Instructions from the start of one compared window to the next
    #[arg(long, value_name = "COUNT", default_value = "50M")]
    every: Count,
    /// Instructions of a window; as many as --every: all of the run is compared
    #[arg(long, value_name = "COUNT", default_value = "500k")]
    length: Count,
    /// Where the first window starts
    #[arg(long, value_name = "COUNT", default_value = "0")]
    from: Count,
}

/// Runs the guest and compares.
pub(crate) fn run(arguments: SelfcheckArguments, environment: &Environment) -> Result<Exit> {
    let plan = Plan {
        every: arguments.every.0,
        length: arguments.length.0,
        from: arguments.from.0,
    };
    if plan.length == 0 || plan.length > plan.every {
        return Err(Usage("--length must be at least 1 and at most --every".into()).into());
    }
    execute(&arguments.execution, Some(plan), environment)
}
