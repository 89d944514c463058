//! Saying what is wrong without saying it at every turn.

use std::time::Duration;

use tokio::time::Instant;

/// An unchanged complaint is repeated this often.
const REMIND: Duration = Duration::from_secs(300);

/// The complaint that was made last.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Whether to say this now: it is new, or was last said long ago.
    pub(crate) fn is_due(&mut self, why: &str, now: Instant) -> bool {
        let due = self.0.as_ref().is_none_or(|(told, at)| told != why || now - *at >= REMIND);
        if due {
            self.0 = Some((why.to_owned(), now));
        }
        due
    }

    /// All is well; the next complaint is new.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{Complaint, REMIND};
    use tokio::time::Instant;

    #[test]
    fn what_stays_wrong_is_said_once_and_then_now_and_again() {
        let start = Instant::now();
        let mut complaint = Complaint::default();
        assert!(complaint.is_due("a", start));
        assert!(!complaint.is_due("a", start + REMIND / 2));
        assert!(complaint.is_due("b", start + REMIND / 2));
        assert!(!complaint.is_due("b", start + REMIND));
        assert!(complaint.is_due("b", start + REMIND * 2));
        complaint.forget();
        assert!(complaint.is_due("b", start + REMIND * 2));
    }
}
