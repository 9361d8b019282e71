//! Choosing bases for a page and encoding it: pure work, one page at a time, on any thread.

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::edit::{Edit, apply};
use crate::codec::guess::guess;
use crate::codec::matcher::{Anchor, Effort, Matcher};
use crate::codec::sample::{Sample, SampleIndex, in_runs, moved, samples, select};
use crate::error::Error;
use crate::id::{PAGE_BYTES, Page};
use crate::index::Item;

/// Edits this small are not worth a search for better bases.
const SMALL: usize = 48;
/// From here on a predecessor helps so little that pages are looked for that help without it.
const POOR: usize = 1200;
/// A predecessor of this cost leaves little budget for other bases.
const DEAR: u8 = 4;
/// An edit that takes no more is not looked through for what moved within the page.
const UNMOVED: usize = 256;
/// Bases found by similarity, at most.
const MOST_SIMILAR: usize = 4;
/// Bytes that one more page decode must save. Far more than reading costs: pages that are cheap to
/// decode are what later pages can be coded against within their budget (measured: with 12 in its
/// place, the increments of a guest that moves rows between database pages were a third larger).
const BYTES_PER_DECODE: usize = 250;

thread_local! {
    static MATCHER: RefCell<Matcher> = RefCell::new(Matcher::new());
    static OLD_SAMPLES: RefCell<Vec<Sample>> = const { RefCell::new(Vec::new()) };
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
            _ => QUICK,
        }
    }
}

/// From so many equal words on a predecessor is taken as it is.
const EQUAL: usize = 48;
/// Copies at the same offset and at anchors.
const QUICK: Effort = Effort {
    chain: 0,
    step: 4,
    patience: 6,
};

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

    fn encode(&self, page: &Page, anchors: &[Anchor], effort: Effort) -> Edit {
        let pages: Vec<&Page> = self.pages.iter().map(|page| &**page).collect();
        MATCHER.with_borrow_mut(|matcher| matcher.encode(page, &pages, anchors, effort))
    }
}

/// The best encoding so far.
struct Search<'a> {
    task: &'a Task<'a>,
    all: &'a dyn Bases,
    best: Chosen,
    edit: Edit,
}

/// Encodes a page, verifies that it decodes, and says against what.
pub(crate) fn encode(task: &Task<'_>, all: &dyn Bases) -> Result<Encoded, Error> {
    let mut old = Chosen::default();
    for version in task.versions.iter().flatten() {
        if all.cost(*version)? < task.budget {
            old.add(all, *version)?;
            break;
        }
    }
    let mut search = Search {
        task,
        all,
        edit: Edit::whole(task.page),
        best: Chosen::default(),
    };
    if old
        .pages
        .first()
        .is_some_and(|old| equal_words(task.page, old) >= EQUAL)
    {
        search.edit = old.encode(task.page, &[], QUICK);
        search.best = old.clone();
    }
    let mut own = Vec::new();
    if search.edit.estimate() > SMALL {
        if task.diligence != Diligence::Aligned {
            samples(task.page, &mut own);
            search.run(&own, old)?;
        }
        search.whole_if_smaller();
    }
    search.finish(own)
}

/// Bytes of the words that are not zero: far less than an eighth of that does not come from zstd.
fn nonzero(page: &Page) -> usize {
    let words = page.as_chunks::<8>().0.iter();
    8 * words
        .map(|word| usize::from(*word != [0; 8]))
        .sum::<usize>()
}

/// Words at the same offset that are equal, but not zero.
fn equal_words(a: &Page, b: &Page) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    words
        .map(|(a, b)| usize::from(a == b && *a != [0; 8]))
        .sum()
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
        diligence: Diligence::Thorough,
        budget: 0,
    };
    let mut search = Search::from(&task, bases, all)?;
    search.whole_if_smaller();
    search.finish(Vec::new())
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
    let mut search = Search::from(&task, bases, all)?;
    if search.edit.estimate() > SMALL {
        let best = search.best.clone();
        search.run(own, best)?;
    }
    search.finish(Vec::new())
}

impl<'a> Search<'a> {
    fn from(task: &'a Task<'a>, bases: &[Item], all: &'a dyn Bases) -> Result<Self, Error> {
        let mut best = Chosen::default();
        for &base in bases {
            best.add(all, base)?;
        }
        let edit = best.encode(task.page, &[], task.diligence.effort());
        Ok(Self {
            task,
            all,
            best,
            edit,
        })
    }

    /// About what an edit takes, and what each decode costs those who come after.
    fn price(chosen: &Chosen, edit: &Edit) -> usize {
        edit.estimate() + BYTES_PER_DECODE * usize::from(chosen.cost)
    }

    /// Looks for similar pages, beside the predecessor and, if that helps little, without it.
    fn run(&mut self, own: &[Sample], old: Chosen) -> Result<(), Error> {
        let before = self.edit.estimate();
        let wanted = in_runs(own, &self.edit.literal_runs);
        let dear = old.cost >= DEAR;
        self.improve(&wanted, old)?;
        // A predecessor that is dear to decode leaves no budget for pages that would help more.
        if dear && before > POOR && self.edit.estimate() > before / 8 {
            self.improve(own, Chosen::default())?;
        }
        Ok(())
    }

    /// Adds pages that hold the wanted samples to those chosen.
    fn improve(&mut self, wanted: &[Sample], mut chosen: Chosen) -> Result<(), Error> {
        let mut anchors = Vec::new();
        if self.edit.estimate() > UNMOVED
            && let Some(old) = chosen.pages.first()
        {
            OLD_SAMPLES.with_borrow_mut(|buffer| {
                samples(old, buffer);
                anchors = moved(wanted, buffer);
            });
        }
        if self.task.diligence != Diligence::Predecessor {
            let left = self.task.budget.saturating_sub(1 + chosen.cost);
            let known = &self.best.items;
            let similar = select(
                self.all.similar(),
                wanted,
                MOST_SIMILAR,
                |item| !known.contains(&item),
                left,
            );
            let first = chosen.items.len() as u8;
            anchors.extend(similar.anchors.iter().map(|anchor| Anchor {
                base: anchor.base + first,
                ..*anchor
            }));
            for item in similar.items {
                chosen.add(self.all, item)?;
            }
        }
        if anchors.is_empty() {
            return Ok(());
        }
        anchors.sort_by_key(|anchor| anchor.end);
        let edit = chosen.encode(self.task.page, &anchors, self.task.diligence.effort());
        if Self::price(&chosen, &edit) < Self::price(&self.best, &self.edit) {
            (self.best, self.edit) = (chosen, edit);
        }
        Ok(())
    }

    /// Stores the page whole if bases hardly help.
    fn whole_if_smaller(&mut self) {
        if self.best.items.is_empty() || self.edit.estimate() < nonzero(self.task.page) / 8 {
            return;
        }
        let delta = guess(&self.edit.literals) + self.edit.tokens.len() * 3 / 4;
        if delta * 20 >= guess(self.task.page) * 19 {
            self.best = Chosen::default();
            self.edit = Edit::whole(self.task.page);
        }
    }

    /// Decodes the edit again. A mismatch would be an error of the encoder.
    fn finish(self, samples: Vec<Sample>) -> Result<Encoded, Error> {
        let (edit, best) = (self.edit, self.best);
        let pages: Vec<&Page> = best.pages.iter().map(|page| &**page).collect();
        let mut decoded = [0; PAGE_BYTES];
        match apply(&edit.tokens, &edit.literals, &pages, &mut decoded) {
            Ok(()) if decoded == *self.task.page => Ok(Encoded {
                edit,
                cost: 1 + best.cost,
                bases: best.items,
                samples,
            }),
            _ => Err(Error::Refused(
                "an encoded page does not decode to itself".to_owned(),
            )),
        }
    }
}
