//! Progress on standard error; nothing is shown where that is no terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

const STEP: Duration = Duration::from_millis(250);

/// A bar of `total` things with their rate and the time left.
pub(crate) fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template =
        format!("{{msg:20}} {{wide_bar}} {{pos}}/{{len}} {what}, {{per_sec}}, {{eta}} left");
    bar.set_style(style(&template));
    bar.enable_steady_tick(STEP);
    bar
}

/// A line that says what is going on, where nobody knows how long it will take.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("{spinner} {elapsed} {msg}"));
    bar.enable_steady_tick(STEP);
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well-formed")
}
