//! Trouble on demand: throttling, server errors, slow answers, cut connections, batches of which a part fails, lists that lag behind.
//!
//! Faults are looked at in their order, and each is used up by the calls it hits, so a list of them is a script. The script can be replaced while
//! the emulator runs; no fault outlives its own use.

use std::collections::BTreeMap;

use ipnet::IpNet;
use loden_aliyun::ApiError;
use serde::{Deserialize, Serialize};

use super::{Cloud, Instance, Table, Vpc};

/// What the lists of the cloud showed at one moment.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    vpcs: BTreeMap<String, Vpc>,
    tables: BTreeMap<String, Table>,
    instances: BTreeMap<String, Instance>,
}

/// Trouble that the next matching calls run into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only calls of this action; all actions unless given.
    #[serde(default)]
    pub action: Option<String>,
    /// How many calls (or batch items) it hits; 4294967295 goes on until it is taken back.
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
    /// The connection closes and the call is not carried out.
    LoseCall,
    /// The call is carried out, and its answer is lost: the connection closes.
    LoseAnswer,
    /// A call that only reads is answered with what there was when the fault was injected (the first, if there are several).
    Stale,
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
        if fault.times != u32::MAX {
            fault.times -= 1;
        }
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

    /// Whether a call is to be lost before it is carried out.
    pub fn take_lost_call(&mut self, action: &str) -> bool {
        self.take_fault(action, |kind| matches!(kind, FaultKind::LoseCall).then_some(())).is_some()
    }

    /// Runs a call that only reads on what there was before, if a fault wants that, and any other call on what there is.
    pub(super) fn perhaps_stale<T>(&mut self, action: &str, run: impl FnOnce(&mut Self) -> T) -> T {
        let reads = action.starts_with("Describe") || action.starts_with("Get");
        if !reads || self.take_fault(action, |kind| matches!(kind, FaultKind::Stale).then_some(())).is_none()
        {
            return run(self);
        }
        let Some(mut frozen) = self.frozen.take() else { return run(self) };
        self.swap(&mut frozen);
        let result = run(self);
        self.swap(&mut frozen);
        self.frozen = Some(frozen);
        self.thaw();
        result
    }

    fn swap(&mut self, frozen: &mut Frozen) {
        std::mem::swap(&mut self.vpcs, &mut frozen.vpcs);
        std::mem::swap(&mut self.tables, &mut frozen.tables);
        std::mem::swap(&mut self.instances, &mut frozen.instances);
    }

    /// Keeps what lists are to show, or lets it go when no fault asks for it any more.
    fn thaw(&mut self) {
        let wanted = self.faults.iter().any(|fault| fault.times > 0 && fault.kind == FaultKind::Stale);
        if !wanted {
            self.frozen = None;
        } else if self.frozen.is_none() {
            self.frozen = Some(Frozen {
                vpcs: self.vpcs.clone(),
                tables: self.tables.clone(),
                instances: self.instances.clone(),
            });
        }
    }

    /// Adds a fault to the script.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
        self.thaw();
    }

    /// Puts another script in place of what is left of the present one.
    pub fn set_faults(&mut self, faults: Vec<Fault>) {
        self.faults = faults;
        self.frozen = None;
        self.thaw();
    }

    /// Ends all injected faults.
    pub fn clear_faults(&mut self) {
        self.set_faults(Vec::new());
    }

    /// What is left of the script.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
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
