//! A kernel in memory, for tests of everything that plans, and the random scenarios that it is compared with the real
//! kernel by.

mod random;

pub use random::Random;

use crate::model::{self, Refused};
use crate::{Key, Object, Objects, Observed, Scope, Step};

/// A network namespace that behaves like the kernel's as far as [`crate::Object`]s go: removing a link removes what is
/// on it, a route needs a link that is up, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kernel {
    objects: Objects,
}

impl Kernel {
    /// A kernel in which these objects exist, as if they had always been there.
    #[must_use]
    pub fn with(objects: Objects) -> Self {
        Self { objects }
    }

    /// What a daemon with this scope sees.
    #[must_use]
    pub fn observe(&self, scope: &Scope) -> Observed {
        let mut objects = self.objects.clone();
        objects.retain(|object| scope.looks_at(object));
        Observed { objects }
    }

    /// Applies one step, consequences included.
    ///
    /// # Errors
    /// As the kernel would refuse it; nothing has changed then.
    pub fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        model::apply(&mut self.objects, step)
    }

    /// Everything there is, whether or not somebody looks at it.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Somebody removes an object by hand; `false` if there was none.
    pub fn remove(&mut self, key: &Key) -> bool {
        match self.objects.get(key).cloned() {
            Some(object) => self.apply(&Step::Delete(object)).is_ok(),
            None => false,
        }
    }

    /// Somebody makes or changes an object by hand.
    ///
    /// # Errors
    /// As the kernel would refuse it.
    pub fn put(&mut self, object: Object) -> Result<(), Refused> {
        match self.objects.get(&object.key()).cloned() {
            Some(from) => self.apply(&Step::Change { from, to: object }),
            None => self.apply(&Step::Add(object)),
        }
    }
}
