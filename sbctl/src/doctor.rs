//! `sbctl doctor`: what this host can do, tried live, in plain words.
//!
//! Reading order: `check` (one finding), `kvm` and `host` (what is tried), `round` (a guest is recorded
//! and verified), `report` (what follows).

mod check;
mod host;
mod kvm;
mod report;
mod round;

use crate::environment::Environment;
use crate::exit::Exit;
use crate::guest::EXECUTES;
use crate::progress;
use anyhow::Result;
use check::Check;
use clap::Args;
use report::Report;
use std::path::PathBuf;

/// Options of `sbctl doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Where KVM's device is
    #[arg(long, value_name = "PATH", hide = true, default_value = "/dev/kvm")]
    kvm_device: PathBuf,
}

/// Examines this host.
pub(crate) fn run(arguments: DoctorArguments, environment: &Environment) -> Result<Exit> {
    let progress = progress::spinner();
    let mut checks: Vec<Check> = Vec::new();
    let mut note = |found: Vec<Check>| checks.extend(found);
    progress.set_message("trying KVM");
    let (of_kvm, device) = kvm::examine(&arguments.kvm_device);
    note(of_kvm);
    progress.set_message("looking at this host");
    note(host::examine(&environment.repository_path()?));
    progress.set_message("recording and verifying a small guest");
    note(vec![round::on_engine(), round::on_kvm(device.as_ref())]);
    progress.finish_and_clear();
    let report = Report::new(checks, EXECUTES);
    environment.finish(&report, &report)?;
    Ok(match report.recording_works {
        true => Exit::Done,
        false => Exit::Failed,
    })
}
