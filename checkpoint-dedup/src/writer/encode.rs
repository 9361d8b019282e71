//! Choosing bases for a page and encoding it: pure work, one page at a time, on any thread.

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::edit::{Edit, apply};
use crate::codec::matcher::{Effort, Matcher};
use crate::codec::sample::{Sample, SampleIndex, in_runs, samples, select};
use crate::error::Error;
use crate::id::{PAGE_BYTES, Page};
use crate::index::Item;

/// Edits this small are not worth a search for better bases.
const SMALL: usize = 48;
/// From here on a predecessor helps so little that pages are looked for that help without it.
const POOR: usize = 1200;
/// Bases found by similarity, at most.
const MOST_SIMILAR: usize = 4;
/// Bytes that one more page decode must save. Far more than reading costs: pages that are cheap to
/// decode are what later pages can be coded against within their budget (measured: with 12 in its
/// place, the increments of a guest that moves rows between database pages were a third larger).
const BYTES_PER_DECODE: usize = 250;

thread_local! {
    static MATCHER: RefCell<Matcher> = RefCell::new(Matcher::new());
    static SAMPLES: RefCell<Vec<Sample>> = const { RefCell::new(Vec::new()) };
}

/// How much work a page may take; given way as the queue fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Diligence {
    /// Look everywhere: nobody waits.
    Thorough,
    /// Search for similar pages.
    Full,
    /// Compare with the frame's previous version only.
    Predecessor,
    /// The same, only where bytes stand at the same offset.
    Aligned,
}

impl Diligence {
    /// What the backlog of a pipeline leaves time for.
    pub(super) fn for_backlog(waiting: usize) -> Self {
        match waiting {
            0 => Self::Full,
            1 => Self::Predecessor,
            _ => Self::Aligned,
        }
    }

    fn effort(self) -> Effort {
        match self {
            Self::Thorough => Effort {
                chain: 32,
                step: 1,
                patience: 12,
            },
            Self::Full | Self::Predecessor => Effort {
                chain: 4,
                step: 4,
                patience: 6,
            },
            Self::Aligned => Effort {
                chain: 0,
                step: 4,
                patience: 5,
            },
        }
    }
}

/// What encoding needs to know of other pages.
pub(crate) trait Bases: Sync {
    /// Decode cost of an item.
    fn cost(&self, item: Item) -> Result<u8, Error>;
    /// Content of an item.
    fn page(&self, item: Item) -> Result<Arc<Page>, Error>;
    /// Where to look for similar pages.
    fn similar(&self) -> &SampleIndex;
}

/// One page to encode.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) page: &'a Page,
    /// The versions of the frame to compare with, best first.
    pub(crate) versions: [Option<Item>; 2],
    pub(crate) diligence: Diligence,
    /// Most that decoding the page may cost.
    pub(crate) budget: u8,
}

/// An encoded page.
pub(crate) struct Encoded {
    pub(crate) edit: Edit,
    pub(crate) bases: Vec<Item>,
    pub(crate) cost: u8,
    /// The page's samples, for those who come after (empty if they were not needed).
    pub(crate) samples: Vec<Sample>,
}

/// Bases with their content.
#[derive(Default, Clone)]
struct Chosen {
    items: Vec<Item>,
    pages: Vec<Arc<Page>>,
    cost: u8,
}

impl Chosen {
    fn add(&mut self, all: &dyn Bases, item: Item) -> Result<(), Error> {
        self.cost += all.cost(item)?;
        self.pages.push(all.page(item)?);
        self.items.push(item);
        Ok(())
    }

    fn encode(&self, page: &Page, effort: Effort) -> Edit {
        let pages: Vec<&Page> = self.pages.iter().map(|page| &**page).collect();
        MATCHER.with_borrow_mut(|matcher| matcher.encode(page, &pages, effort))
    }
}

/// Encodes a page, verifies that it decodes, and says against what.
pub(crate) fn encode(task: &Task<'_>, all: &dyn Bases) -> Result<Encoded, Error> {
    let mut best = Chosen::default();
    for version in task.versions.iter().flatten() {
        if all.cost(*version)? < task.budget {
            best.add(all, *version)?;
            break;
        }
    }
    let mut edit = best.encode(task.page, task.diligence.effort());
    let mut own_samples = Vec::new();
    let search = task.diligence == Diligence::Full;
    if search && edit.estimate() > SMALL {
        SAMPLES.with_borrow_mut(|buffer| {
            samples(task.page, buffer);
            own_samples.clone_from(buffer);
        });
        search_similar(task, all, &own_samples, &mut best, &mut edit)?;
    }
    drop_useless(task, &mut best, &mut edit);
    verify(task.page, &best, &edit)?;
    Ok(Encoded {
        edit,
        cost: 1 + best.cost,
        bases: best.items,
        samples: own_samples,
    })
}

/// Encodes a page against given bases, or whole if they hardly help.
pub(crate) fn encode_against(
    page: &Page,
    bases: &[Item],
    all: &dyn Bases,
) -> Result<Encoded, Error> {
    let task = Task {
        page,
        versions: [None, None],
        diligence: Diligence::Full,
        budget: 0,
    };
    let mut chosen = Chosen::default();
    for &base in bases {
        chosen.add(all, base)?;
    }
    let mut edit = chosen.encode(page, task.diligence.effort());
    drop_useless(&task, &mut chosen, &mut edit);
    verify(page, &chosen, &edit)?;
    Ok(Encoded {
        edit,
        cost: 1 + chosen.cost,
        bases: chosen.items,
        samples: Vec::new(),
    })
}

/// Looks for similar pages, beside the predecessor and, if that helps little, without it.
fn search_similar(
    task: &Task<'_>,
    all: &dyn Bases,
    own: &[Sample],
    best: &mut Chosen,
    edit: &mut Edit,
) -> Result<(), Error> {
    let before = edit.estimate();
    let wanted = in_runs(own, &edit.literal_runs);
    let predecessor = !best.items.is_empty();
    improve(task, all, &wanted, best, edit)?;
    // A predecessor that is dear to decode leaves no budget for pages that would help more.
    if predecessor && before > POOR && edit.estimate() > before / 8 {
        let (mut other, mut tried) = (Chosen::default(), Edit::whole(task.page));
        improve(task, all, own, &mut other, &mut tried)?;
        let price = |chosen: &Chosen| BYTES_PER_DECODE * usize::from(chosen.cost);
        if tried.estimate() + price(&other) < edit.estimate() + price(best) {
            (*best, *edit) = (other, tried);
        }
    }
    Ok(())
}

/// Encodes a page that has an encoding against `bases` as small as can be found, for at most `cost`.
pub(crate) fn encode_again(
    page: &Page,
    bases: &[Item],
    cost: u8,
    own: &[Sample],
    all: &dyn Bases,
) -> Result<Encoded, Error> {
    let task = Task {
        page,
        versions: [None, None],
        diligence: Diligence::Thorough,
        budget: cost,
    };
    let mut best = Chosen::default();
    for &base in bases {
        best.add(all, base)?;
    }
    let mut edit = best.encode(page, task.diligence.effort());
    if edit.estimate() > SMALL {
        search_similar(&task, all, own, &mut best, &mut edit)?;
    }
    verify(page, &best, &edit)?;
    Ok(Encoded {
        edit,
        cost: 1 + best.cost,
        bases: best.items,
        samples: Vec::new(),
    })
}

/// Adds similar pages that cover what the edit still holds as literals.
fn improve(
    task: &Task<'_>,
    all: &dyn Bases,
    wanted: &[Sample],
    best: &mut Chosen,
    edit: &mut Edit,
) -> Result<(), Error> {
    let mut left = task.budget.saturating_sub(1 + best.cost);
    let mut candidate = best.clone();
    let chosen = select(
        all.similar(),
        wanted,
        MOST_SIMILAR,
        |item| {
            (!best.items.contains(&item))
                .then(|| all.cost(item).ok())
                .flatten()
        },
        &mut left,
    );
    if chosen.is_empty() {
        return Ok(());
    }
    for item in chosen {
        candidate.add(all, item)?;
    }
    let tried = candidate.encode(task.page, task.diligence.effort());
    let price = BYTES_PER_DECODE * usize::from(candidate.cost - best.cost);
    if tried.estimate() + price < edit.estimate() {
        *best = candidate;
        *edit = tried;
    }
    Ok(())
}

/// Stores the page whole if bases hardly help.
fn drop_useless(task: &Task<'_>, best: &mut Chosen, edit: &mut Edit) {
    if best.items.is_empty() || edit.estimate() < PAGE_BYTES / 8 {
        return;
    }
    let squeezed = |bytes: &[u8]| crate::codec::squeeze::squeeze(bytes, 1).len();
    let delta = squeezed(&edit.literals) + squeezed(&edit.tokens);
    if delta * 20 >= squeezed(task.page) * 19 {
        *best = Chosen::default();
        *edit = best.encode(task.page, task.diligence.effort());
    }
}

/// Decodes the edit again. A mismatch would be an error of the encoder.
fn verify(page: &Page, best: &Chosen, edit: &Edit) -> Result<(), Error> {
    let pages: Vec<&Page> = best.pages.iter().map(|page| &**page).collect();
    let mut decoded = [0; PAGE_BYTES];
    match apply(&edit.tokens, &edit.literals, &pages, &mut decoded) {
        Ok(()) if decoded == *page => Ok(()),
        _ => Err(Error::Refused(
            "an encoded page does not decode to itself".to_owned(),
        )),
    }
}
