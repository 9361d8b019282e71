//! What keeps a repository in order: removing, collecting garbage, checking, repairing, copying.

mod check;
mod copy;
mod gc;
mod items;
mod mark;
mod mover;
mod progress;
mod rebuild;
mod recompress;
mod remove;
mod repair;
mod roots;
mod stats;

pub use check::{Affected, CheckOptions, CheckReport, Damage, DamageKind, check};
pub use copy::CopyReport;
pub use gc::{GcOptions, GcPlan, GcReport};
pub use progress::{Progress, Silent};
pub use rebuild::RebuildReport;
pub use remove::TrimRange;
pub use repair::{ReadableRun, RepairAction, RepairPlan, plan_repair};
pub use stats::{MethodStats, RecordingStats, Stats};
