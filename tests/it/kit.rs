//! The plugin kit, as plugin authors run it: the binary, files, and what it prints.

mod contract;
mod developing;
mod inspecting;
mod making;
mod testing;

use std::path::Path;
use std::process::Output;

use crate::support::process::signalpost;

/// What a run of the command line left behind.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `signalpost plugin …` in a folder, with nothing in its environment but where compiled plugins are kept.
pub fn plugin(dir: &Path, arguments: &[&str]) -> Ran {
    let Output { status, stdout, stderr } = signalpost().arg("plugin").args(arguments).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().expect("no signal ended it"), out: text(stdout), err: text(stderr) }
}
