//! The plan between what is and what shall be.
//!
//! The walk is over the union of keys. Links that must be created anew go first, since everything on them goes with them;
//! then what is missing or different, in the order of dependence; surplus objects of ours go last and in reverse, so
//! that nothing right is ever taken away before its replacement stands.

use std::collections::BTreeSet;

use crate::model::{self, Refused};
use crate::{Blocked, Desired, Link, Object, Objects, Observed, Plan, Reason, Step};

/// How often the plan is replayed to mend what its own steps tear down. One more round is needed for each link in the chain
/// from a removed address to a flushed route; four leaves room.
const ROUNDS: usize = 4;

/// Plans the way from the observed to the desired network.
///
/// Foreign objects never appear in a step: an equal one satisfies what is desired, a different one under a desired key
/// [blocks](Blocked) it.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Plan {
    let mut planner =
        Planner { desired, state: observed.objects.clone(), steps: Vec::new(), blocked: Vec::new() };
    for _ in 0..ROUNDS {
        let before = planner.steps.len();
        planner.blocked.clear();
        planner.recreate_links();
        planner.add_and_change();
        planner.delete_surplus();
        if planner.steps.len() == before {
            break;
        }
    }
    Plan { steps: planner.steps, blocked: planner.blocked }
}

struct Planner<'a> {
    desired: &'a Desired,
    state: Objects,
    steps: Vec<Step>,
    blocked: Vec<Blocked>,
}

impl Planner<'_> {
    fn owns(&self, object: &Object) -> bool {
        self.desired.scope.owns(&self.state, object)
    }

    fn take(&mut self, step: Step) -> Result<(), Refused> {
        model::apply(&mut self.state, &step)?;
        self.steps.push(step);
        Ok(())
    }

    /// Removes links of ours whose fixed settings are wrong; adding them again follows.
    fn recreate_links(&mut self) {
        for object in self.desired.objects.iter() {
            let Object::Link(want) = object else { continue };
            let Some(have) = self.state.link(&want.name).cloned() else { continue };
            let have = Object::Link(have);
            if !matches!(&have, Object::Link(link) if link.is_kind_of(want)) && self.owns(&have) {
                let _ = self.take(Step::Delete(have));
            }
        }
    }

    fn add_and_change(&mut self) {
        for want in self.desired.objects.iter() {
            let step = match self.state.get(&want.key()) {
                None => Step::Add(want.clone()),
                Some(have) if have.satisfies(want) => continue,
                Some(have) if matches!(want, Object::Sysctl(_)) || self.owns(have) => {
                    Step::Change { from: have.clone(), to: want.clone() }
                }
                Some(have) => {
                    let reason = Reason::Foreign(have.clone());
                    self.blocked.push(Blocked { wanted: want.clone(), reason });
                    continue;
                }
            };
            if let Err(refused) = self.take(step) {
                let reason = match refused {
                    Refused::NoLink(link) => Reason::NoLink(link),
                    Refused::LinkDown(link) => Reason::LinkDown(link),
                    other => Reason::Refused(other),
                };
                self.blocked.push(Blocked { wanted: want.clone(), reason });
            }
        }
    }

    fn delete_surplus(&mut self) {
        let surplus: Vec<Object> = self
            .state
            .iter()
            .filter(|object| self.desired.objects.get(&object.key()).is_none() && self.owns(object))
            .cloned()
            .collect();
        let names = surplus.iter().filter_map(|object| match object {
            Object::Link(Link { name, .. }) => Some(name.as_str()),
            _ => None,
        });
        let going: BTreeSet<&str> = names.collect();
        for object in surplus.iter().rev() {
            // What lives on a link that goes, goes with it.
            if object.link().is_some_and(|link| going.contains(link)) && !matches!(object, Object::Link(_)) {
                continue;
            }
            if self.state.get(&object.key()).is_some() {
                let _ = self.take(Step::Delete(object.clone()));
            }
        }
    }
}
