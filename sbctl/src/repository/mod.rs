//! The commands that manage a repository.

pub(crate) mod check;
pub(crate) mod copy;
pub(crate) mod export;
pub(crate) mod gc;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod stats;
mod utc;
mod watch;
