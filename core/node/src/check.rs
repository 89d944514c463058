//! The last look at a plan before anything happens.

use thiserror::Error;

use crate::model::{self, Refused};
use crate::{Desired, Key, Object, Objects, Observed, Plan, Step};

/// Why a plan must not be carried out. A plan made by [`crate::diff`] never is; this guards against a mistake there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unsafe {
    /// A step would remove or change somebody else's object.
    #[error("the plan touches {0}, which is not ours; nothing was done")]
    Foreign(Key),
    /// A step makes something that nobody asked for.
    #[error("the plan makes {0}, which is not desired; nothing was done")]
    NotDesired(Key),
    /// A step takes away something that is right.
    #[error("the plan removes {0}, which is desired; nothing was done")]
    RemovesDesired(Key),
    /// A step comes before what it needs.
    #[error("the plan's step for {key} cannot work where it stands: {why}; nothing was done")]
    Order {
        /// The object of the step.
        key: Key,
        /// What the kernel would say.
        why: Refused,
    },
}

/// Checks that a plan only touches what is ours or desired, takes nothing right away, and works in its order.
///
/// # Errors
/// The first rule the plan breaks.
pub fn check(plan: &Plan, desired: &Desired, observed: &Observed) -> Result<(), Unsafe> {
    let mut state: Objects = observed.objects.clone();
    for step in &plan.steps {
        let key = step.key();
        match step {
            Step::Add(object) => wanted(desired, object)?,
            Step::Change { to, .. } => {
                wanted(desired, to)?;
                let ours = state.get(&key).is_none_or(|have| desired.scope.owns(&state, have));
                if !ours && !matches!(to, Object::Sysctl(_)) {
                    return Err(Unsafe::Foreign(key));
                }
            }
            Step::Delete(object) => {
                if state.get(&key).is_some_and(|have| !desired.scope.owns(&state, have)) {
                    return Err(Unsafe::Foreign(key));
                }
                // A link whose fixed settings are wrong is the one thing that goes in order to come back.
                let comes_back = matches!(desired.objects.get(&key), Some(want) if object.satisfies(want));
                if comes_back || (desired.objects.get(&key).is_some() && !matches!(object, Object::Link(_))) {
                    return Err(Unsafe::RemovesDesired(key));
                }
            }
        }
        model::apply(&mut state, step).map_err(|why| Unsafe::Order { key, why })?;
    }
    Ok(())
}

fn wanted(desired: &Desired, object: &Object) -> Result<(), Unsafe> {
    let key = object.key();
    if desired.objects.get(&key) == Some(object) { Ok(()) } else { Err(Unsafe::NotDesired(key)) }
}
