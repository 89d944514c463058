//! Trouble on demand: throttling, server errors, slow answers, batches of which a part fails.

use ipnet::IpNet;
use loden_aliyun::ApiError;
use serde::{Deserialize, Serialize};

use super::Cloud;

/// Trouble that the next matching calls run into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only calls of this action; all actions unless given.
    #[serde(default)]
    pub action: Option<String>,
    /// How many calls (or batch items) it hits.
    pub times: u32,
    /// What happens to them.
    pub kind: FaultKind,
}

/// What a fault does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FaultKind {
    /// The call changes nothing and answers this error.
    Answer {
        /// HTTP status.
        status: u16,
        /// Code.
        code: String,
        /// Message.
        #[serde(default)]
        message: String,
        /// Seconds for the header `x-acs-retry-after`.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// The call is carried out, and its answer is lost: the connection closes.
    LoseAnswer,
    /// The call is held back before it is carried out.
    Delay {
        /// For how long.
        milliseconds: u64,
    },
    /// An item of a batch is refused.
    Item {
        /// Only this destination; any unless given.
        #[serde(default)]
        destination: Option<IpNet>,
        /// `FailedCode`.
        code: String,
        /// `FailedMessage`.
        #[serde(default)]
        message: String,
    },
}

impl Cloud {
    /// The first fault that matches a call and `pick`, used up by one.
    fn take_fault<T>(&mut self, action: &str, pick: impl Fn(&FaultKind) -> Option<T>) -> Option<T> {
        let hits =
            |fault: &Fault| fault.times > 0 && fault.action.as_deref().is_none_or(|name| name == action);
        let (fault, taken) = self.faults.iter_mut().filter(|fault| hits(fault)).find_map(|fault| {
            let taken = pick(&fault.kind)?;
            Some((fault, taken))
        })?;
        fault.times -= 1;
        self.faults.retain(|fault| fault.times > 0);
        Some(taken)
    }

    /// The error that a call is to answer instead of being carried out.
    pub(super) fn take_error(&mut self, action: &str) -> Option<ApiError> {
        self.take_fault(action, |kind| match kind {
            FaultKind::Answer { status, code, message, retry_after_s } => {
                let mut error = ApiError::new(*status, code.as_str(), message.as_str());
                error.retry_after = retry_after_s.map(std::time::Duration::from_secs);
                Some(error)
            }
            _ => None,
        })
    }

    /// Whether the answer of a call is to be lost.
    pub fn take_lost_answer(&mut self, action: &str) -> bool {
        self.take_fault(action, |kind| matches!(kind, FaultKind::LoseAnswer).then_some(())).is_some()
    }

    /// How long a call is to be held back, in milliseconds, the general latency included.
    pub fn take_delay(&mut self, action: &str) -> u64 {
        let own = self.take_fault(action, |kind| match kind {
            FaultKind::Delay { milliseconds } => Some(*milliseconds),
            _ => None,
        });
        self.settings.latency_ms.saturating_add(own.unwrap_or(0))
    }

    /// Code and message with which a batch item is to be refused.
    pub(super) fn take_item_failure(
        &mut self,
        action: &str,
        destination: Option<IpNet>,
    ) -> Option<(String, String)> {
        self.take_fault(action, |kind| match kind {
            FaultKind::Item { destination: only, code, message }
                if only.is_none() || only.map(|net| net.trunc()) == destination =>
            {
                Some((code.clone(), message.clone()))
            }
            _ => None,
        })
    }
}
