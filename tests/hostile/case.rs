//! One fuzz case: bytes in, agreement out.

use super::image::{Bytes, Image, build, load_code};
use super::trial::{Ending, Plan, Trace, run as run_trial, steps};
use machine::vcpu::Vcpu;
use std::fmt;

/// Fewest steps of a run.
const LEAST_STEPS: u64 = 200;

/// What a case showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub kind: Kind,
    /// Steps it took.
    pub steps: u64,
}

/// [`Ending`] without its facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All steps were done.
    Steps,
    /// HLT.
    Halted,
    /// Triple fault.
    Shutdown,
    /// A named limit.
    Limit,
    /// It took too long and obeyed the kick.
    Kicked,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding(pub String);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a guest made of `input` in normal blocks, in one-instruction blocks, and in normal blocks
/// with stops at which everything cached is dropped; all must end alike. `watch` learns of each
/// engine before it starts.
///
/// # Errors
/// The first disagreement, or what a run must never do.
pub fn run(input: &[u8], watch: &mut dyn FnMut(&dyn Vcpu)) -> Result<Summary, Finding> {
    let mut bytes = Bytes::new(input);
    let limit = LEAST_STEPS + u64::from(bytes.byte()) * 8;
    let first_stop = 1 + u64::from(bytes.byte());
    let mut image = build(&mut bytes);
    load_code(&mut image, bytes.rest());
    let plain = Plan {
        one_instruction_blocks: false,
        steps: limit,
        stops: Vec::new(),
        code_bytes: 1 << 20,
    };
    let normal = trial("normal blocks", &image, &plain, watch)?;
    let one = Plan {
        one_instruction_blocks: true,
        ..plain.clone()
    };
    let stopping = Plan {
        stops: (1..)
            .map(|n| n * first_stop)
            .take_while(|at| *at < limit)
            .take(24)
            .collect(),
        ..plain.clone()
    };
    for (name, plan) in [
        ("one-instruction blocks", one),
        ("stops and cold caches", stopping),
    ] {
        let other = trial(name, &image, &plan, watch)?;
        let kicked = [&normal, &other].map(|trace| trace.ending == Ending::Kicked);
        if normal != other && kicked == [false, false] {
            let what = difference(&normal, &other);
            let place = place(&image, &plain, &plan, watch);
            return Err(Finding(format!(
                "{name} differ from normal blocks: {what}; {place}"
            )));
        }
    }
    Ok(Summary {
        kind: kind(&normal.ending),
        steps: steps(normal.position).0,
    })
}

/// Where two ways to work part, by halving: the step after which they differ, and what is there.
fn place(image: &Image, one: &Plan, other: &Plan, watch: &mut dyn FnMut(&dyn Vcpu)) -> String {
    let mut differ = |steps: u64| {
        let stops = |plan: &Plan| {
            plan.stops
                .iter()
                .copied()
                .filter(|at| *at < steps)
                .collect()
        };
        let cut = |plan: &Plan| Plan {
            steps,
            stops: stops(plan),
            ..plan.clone()
        };
        run_trial(image, &cut(one), watch) != run_trial(image, &cut(other), watch)
    };
    let (mut same, mut different) = (0, one.steps);
    while different - same > 1 {
        let middle = same + (different - same) / 2;
        if differ(middle) {
            different = middle;
        } else {
            same = middle;
        }
    }
    let at = Plan {
        steps: same,
        stops: Vec::new(),
        ..one.clone()
    };
    match run_trial(image, &at, watch) {
        Ok(Trace {
            state: Some(state),
            ram,
            ..
        }) => {
            let code = usize::try_from(state.rip)
                .ok()
                .and_then(|rip| ram.get(rip..rip + 15));
            format!(
                "first after step {same}, at RIP {:#x}, RFLAGS {:#x}, CS {:#x}, bytes {code:02x?}",
                state.rip, state.rflags, state.segs[1].selector
            )
        }
        _ => format!("first after step {same}"),
    }
}

fn trial(
    name: &str,
    image: &Image,
    plan: &Plan,
    watch: &mut dyn FnMut(&dyn Vcpu),
) -> Result<Trace, Finding> {
    run_trial(image, plan, watch).map_err(|what| Finding(format!("{name}: {what}")))
}

fn kind(ending: &Ending) -> Kind {
    match ending {
        Ending::Steps => Kind::Steps,
        Ending::Halted => Kind::Halted,
        Ending::Shutdown => Kind::Shutdown,
        Ending::Limit(_) => Kind::Limit,
        Ending::Kicked => Kind::Kicked,
    }
}

fn difference(normal: &Trace, other: &Trace) -> String {
    let mut what = String::new();
    if normal.ending != other.ending {
        what += &format!("ending {:?}, normally {:?}; ", other.ending, normal.ending);
    }
    if normal.position != other.position {
        what += &format!(
            "position {:?}, normally {:?}; ",
            other.position, normal.position
        );
    }
    let [a, b] = [&normal.state, &other.state].map(|state| format!("{state:#?}"));
    for (a, b) in a.lines().zip(b.lines()).filter(|(a, b)| a != b) {
        what += &format!("state {}, normally {}; ", b.trim(), a.trim());
    }
    let differing: Vec<usize> = (0..normal.ram.len())
        .filter(|at| normal.ram[*at] != other.ram[*at])
        .collect();
    if let Some(first) = differing.first() {
        what += &format!(
            "{} bytes of RAM, first {first:#x}: {:#x}, normally {:#x}; ",
            differing.len(),
            other.ram[*first],
            normal.ram[*first]
        );
    }
    if normal.output != other.output {
        what += "port output; ";
    }
    what
}
