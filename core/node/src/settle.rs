//! One round of the reconciler: look, plan, mend, look again, until nothing differs.
//!
//! It takes the kernel as a [`Port`] of two words and makes no choice while it applies. What must hold: nothing is removed in
//! a round in which something could not be put in place, and the round only says that the network [is right](Round::is_right)
//! after an observation that showed it.

use std::collections::BTreeSet;
use std::fmt::Display;

use thiserror::Error;

use crate::{Blocked, Desired, Key, Observed, Plan, Scope, Step, Unsafe, check, diff};

/// How often a round looks before it leaves the rest to the next one. Two looks are the normal case; a third helps when
/// somebody else moved meanwhile.
const LOOKS: usize = 3;

/// The kernel, in the words the reconciler needs.
pub trait Port {
    /// Why an operation failed, in words for a person.
    type Error: Display;

    /// A complete observation of everything the scope looks at.
    ///
    /// # Errors
    /// Whenever it would be incomplete.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, Self::Error>;

    /// Applies one step.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn apply(&mut self, step: &Step) -> Result<(), Self::Error>;

    /// Applies steps in order, going on after one that is refused; one outcome each. Worth providing where many at once
    /// cost less than one after the other.
    fn apply_all(&mut self, steps: &[Step]) -> Vec<Result<(), Self::Error>> {
        steps.iter().map(|step| self.apply(step)).collect()
    }
}

/// Why a round broke off before it had a plan.
#[derive(Debug, Error)]
pub enum SettleError<E: Display> {
    /// The observation failed; nothing was done on its account.
    #[error("observe the node's network: {0}")]
    Observe(E),
    /// The plan broke a rule of its own; nothing of it was done.
    #[error(transparent)]
    Unsafe(#[from] Unsafe),
}

/// What a round did and where it left the network.
#[derive(Debug)]
pub struct Round<E> {
    /// Steps that were applied, in order.
    pub applied: Vec<Step>,
    /// Steps the kernel refused.
    pub failed: Vec<(Step, E)>,
    /// Steps the kernel refused about [dispensable](Desired::dispensable) objects.
    pub forgone: Vec<(Step, E)>,
    /// Desired objects that cannot be had for now.
    pub blocked: Vec<Blocked>,
    /// Whether the last look still showed a difference that a step could mend.
    pub unsettled: bool,
}

impl<E> Round<E> {
    /// Whether the network was seen to be as desired.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.failed.is_empty() && self.blocked.is_empty() && !self.unsettled
    }
}

/// The plan that a round would carry out, without carrying it out.
///
/// # Errors
/// As [`settle`].
pub fn plan<P: Port>(
    port: &mut P,
    scope: &Scope,
    desired: impl Fn(&Observed) -> Desired,
) -> Result<Plan, SettleError<P::Error>> {
    look(port, scope, &desired).map(|(plan, _)| plan)
}

fn look<P: Port>(
    port: &mut P,
    scope: &Scope,
    desired: &impl Fn(&Observed) -> Desired,
) -> Result<(Plan, BTreeSet<Key>), SettleError<P::Error>> {
    let observed = port.observe(scope).map_err(SettleError::Observe)?;
    let desired = desired(&observed);
    let plan = diff(&desired, &observed);
    check(&plan, &desired, &observed)?;
    Ok((plan, desired.dispensable))
}

/// Brings the network to what is desired.
///
/// # Errors
/// When the network cannot be observed or the plan is unsafe. Steps the kernel refused are not errors of the round: the
/// others are applied all the same (a read-only sysctl must not keep the rules away), and [`Round::failed`] has them.
pub fn settle<P: Port>(
    port: &mut P,
    scope: &Scope,
    desired: impl Fn(&Observed) -> Desired,
) -> Result<Round<P::Error>, SettleError<P::Error>> {
    let mut round = Round {
        applied: Vec::new(),
        failed: Vec::new(),
        forgone: Vec::new(),
        blocked: Vec::new(),
        unsettled: false,
    };
    for _ in 0..LOOKS {
        let (Plan { mut steps, mut blocked }, dispensable) = look(port, scope, &desired)?;
        blocked.retain(|blocked| !dispensable.contains(&blocked.wanted.key()));
        steps.retain(|step| !round.forgone.iter().any(|(forgone, _)| forgone.key() == step.key()));
        round.blocked = blocked;
        round.unsettled = !steps.is_empty();
        if steps.is_empty() {
            break;
        }
        let is_delete = |step: &Step| matches!(step, Step::Delete(_));
        for run in steps.chunk_by(|one, next| is_delete(one) == is_delete(next)) {
            if !round.failed.is_empty() && run.iter().any(is_delete) {
                continue;
            }
            for (step, outcome) in run.iter().zip(port.apply_all(run)) {
                match outcome {
                    Ok(()) => round.applied.push(step.clone()),
                    Err(error) if dispensable.contains(&step.key()) => {
                        round.forgone.push((step.clone(), error));
                    }
                    Err(error) => round.failed.push((step.clone(), error)),
                }
            }
        }
        if !round.failed.is_empty() {
            break;
        }
    }
    Ok(round)
}

#[cfg(test)]
mod tests {
    use super::{Port, settle};
    use crate::fake::{Kernel, Random};
    use crate::{Key, Observed, Refused, Scope, Step};

    impl Port for Kernel {
        type Error = Refused;
        fn observe(&mut self, scope: &Scope) -> Result<Observed, Refused> {
            Ok(Self::observe(self, scope))
        }
        fn apply(&mut self, step: &Step) -> Result<(), Refused> {
            Self::apply(self, step)
        }
    }

    /// A kernel that refuses every step about one key.
    struct Stubborn {
        kernel: Kernel,
        refuses: Key,
        applied: Vec<Step>,
    }

    impl Port for Stubborn {
        type Error = Refused;
        fn observe(&mut self, scope: &Scope) -> Result<Observed, Refused> {
            Ok(self.kernel.observe(scope))
        }
        fn apply(&mut self, step: &Step) -> Result<(), Refused> {
            if step.key() == self.refuses {
                return Err(Refused::Missing(step.key()));
            }
            self.applied.push(step.clone());
            self.kernel.apply(step)
        }
    }

    #[test]
    fn a_round_ends_with_a_look_that_shows_no_difference() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut kernel = Kernel::with(random.foreign());
            let desired = random.desired();
            let round = settle(&mut kernel, &desired.scope, |_| desired.clone()).unwrap();
            assert!(round.is_right(), "{round:?}");
            let again = settle(&mut kernel, &desired.scope, |_| desired.clone()).unwrap();
            assert!(
                again.is_right() && again.applied.is_empty(),
                "a right network is not touched: {again:?}"
            );
        }
    }

    #[test]
    fn one_refused_step_holds_back_deletes_but_not_the_rest() {
        let mut random = Random::new(3);
        let mut kernel = Kernel::with(random.foreign());
        let (earlier, _) = random.plan(&Observed::default(), 5);
        settle(&mut kernel, &earlier.scope, |_| earlier.clone()).unwrap();
        let mut tested = 0;
        for _ in 0..50 {
            let (desired, plan) = random.plan(&kernel.observe(&earlier.scope), 5);
            let Some(first) = plan.steps.iter().find(|step| !matches!(step, Step::Delete(_))) else {
                continue;
            };
            let recreated = plan
                .steps
                .iter()
                .any(|s| matches!(s, Step::Delete(o) if desired.objects.get(&o.key()).is_some()));
            if recreated {
                continue;
            }
            tested += 1;
            let mut port = Stubborn { kernel: kernel.clone(), refuses: first.key(), applied: Vec::new() };
            let round = settle(&mut port, &desired.scope, |_| desired.clone()).unwrap();
            assert!(!round.is_right());
            assert!(!port.applied.iter().any(|step| matches!(step, Step::Delete(_))), "{:?}", port.applied);
        }
        assert!(tested > 0);
    }
}
